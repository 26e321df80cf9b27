"""What the host names of fal and of a box are for."""

import pytest

from server.hosts import Role, role_of, split_port


@pytest.mark.parametrize(
    ("host", "role"),
    [
        ("fal.run", Role.RUN),
        ("FalRun.com.", Role.RUN),
        ("queue.fal.run", Role.QUEUE),
        ("queue.localhost", Role.QUEUE),
        ("rest.alpha.fal.ai", Role.REST),
        ("v3.fal.media", Role.FILES),
        ("box", Role.RUN),
        ("rest.box", Role.RUN),
    ],
)
def test_a_host_has_a_role(host: str, role: Role) -> None:
    """Fal's names have fixed roles; of others only the queue's is known by its name."""
    assert role_of(host) is role


@pytest.mark.parametrize(
    ("host", "split"),
    [
        ("Box", ("box", "")),
        ("box.:8443", ("box", ":8443")),
        ("box:", ("box", ":")),
        ("[FD00::2]", ("[fd00::2]", "")),
        ("[::1]:80", ("[::1]", ":80")),
        ("", None),
        ("::1", None),
        ("[::1", None),
        ("a b", None),
        ("a/b", None),
        ("me@box", None),
        ("box:http", None),
        ("box:123456", None),
    ],
)
def test_a_host_has_a_name_and_perhaps_a_port(host: str, split: tuple[str, str] | None) -> None:
    """What is no host is not guessed at."""
    assert split_port(host) == split
