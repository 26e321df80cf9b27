"""What the host names of fal and of a box are for."""

import pytest

from server.hosts import Role, role_of


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
