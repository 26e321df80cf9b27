"""The guard as a whole: nothing that a caller can write leads to what the operator has not listed.

Everything goes through the real client, the real parser and real threads and sockets. Only the
name server is the test's, and the public internet is where the connection would have begun.
"""

import asyncio
import ipaddress
import os
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.addresses import Address
from server.fetch import Fetcher, FetchError
from server.outbound import Outbound, trusted_authorities
from server.targets import AllowList, LookUp, RefusedTargetError
from tests.server.receivers import Receiver, status
from tests.server.ssrf import (
    NAMES,
    PRIVATE_IPV4,
    PRIVATE_IPV6,
    PUBLIC,
    Recorder,
    Traps,
    addresses,
    blocked_urls,
    fake_getaddrinfo,
    host_of,
)

pytestmark = pytest.mark.anyio

GENERATED = int(os.environ.get("SSRF_EXAMPLES", "5000"))
"""How many vectors are made up; set it to look further by hand."""

RECEIVER = "images.example"
"""A name that the operator has listed; it is this machine."""

CONTEXT = trusted_authorities(None)


@pytest.fixture(autouse=True)
def name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer for the names of the corpus; no other name is looked up anywhere."""
    names = {**NAMES, RECEIVER: ["127.0.0.1"], "xn--images-xn7b.example": ["93.184.216.34"]}
    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo(names, []))


def make_fetcher(network: Recorder, *entries: str, look_up: LookUp | None = None) -> Fetcher:
    """Make a fetcher that may go to the public internet and these entries."""
    allowed = AllowList.parse("FLUX2_FETCH_ALLOW", entries, look_up)
    return Fetcher(Outbound(allowed.resolve, CONTEXT, network), 1000, 20, failure_seconds=0)


async def outcome(fetcher: Fetcher, url: str, target: Path) -> str:
    """Return how a download ended: `fetched`, `refused`, or the error's own words."""
    try:
        await fetcher.fetch(url, target)
    except FetchError as error:
        refused = isinstance(error.__cause__, RefusedTargetError)
        return "refused" if refused else str(error.__cause__)
    return "fetched"


async def test_no_vector_of_the_corpus_gets_out(tmp_path: Path) -> None:
    """Addresses, spellings, names, confusions, schemes and ports; the default settings."""
    network = Recorder()
    fetcher = make_fetcher(network)
    async with Traps() as traps:
        vectors = [url for port in traps.ports for url in blocked_urls(port)]
        assert len(set(blocked_urls(traps.ports[0]))) >= 250
        ends = {url: await outcome(fetcher, url, tmp_path / "image") for url in vectors}
        assert network.connected == []
        assert traps.connections == 0
    odd = {url: end for url, end in ends.items() if end != "refused"}
    assert all("cannot be resolved" in end for end in odd.values()), odd
    assert len(odd) < len(ends) / 10  # nearly all are refused for what they are
    assert list(tmp_path.iterdir()) == []


async def test_what_is_public_or_listed_passes(tmp_path: Path) -> None:
    """Otherwise a guard that refuses everything would do."""
    network = Recorder()
    for address in PUBLIC:
        await outcome(make_fetcher(network), f"http://{host_of(address)}/", tmp_path / "image")
    unwrapped = [getattr(item, "ipv4_mapped", None) or item for item in addresses(PUBLIC)]
    assert network.connected == [str(address) for address in unwrapped]
    assert len(network.connected) >= 40
    async with Receiver() as receiver:
        listed = [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.0/8", "127.0.0.1"),
            ("127.0.0.0/8", "2130706433"),
            ("127.0.0.0/8", "[::ffff:127.0.0.1]"),
            (RECEIVER, RECEIVER),
            ("*.example", RECEIVER.upper()),
            ("localhost.localdomain", "localhost.localdomain"),
        ]
        for entry, host in listed:
            url = receiver.url(host=host)
            end = await outcome(make_fetcher(Recorder(), entry), url, tmp_path / "image")
            assert (entry, host, end) == (entry, host, "fetched")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_no_redirect_gets_out(tmp_path: Path, code: int) -> None:
    """A listed server sends on to every address of the corpus, and to other schemes."""
    async with Traps() as traps:
        port = traps.ports[0]
        targets = [
            *(f"http://{host_of(item)}:{port}/" for item in PRIVATE_IPV4 + PRIVATE_IPV6),
            *(f"http://{name}:{port}/" for name in NAMES),
            *(f"//127.0.0.1:{port}/", f"//[::1]:{port}/", f"http:\\\\127.0.0.1:{port}\\"),
            *("file:///etc/passwd", "ftp://127.0.0.1/", f"gopher://127.0.0.1:{port}/_x", "\\\\a"),
            *(f"http://user:password@{RECEIVER}/", f"http://{RECEIVER}@127.0.0.1:{port}/"),
        ]
        network = Recorder()
        fetcher = make_fetcher(network, RECEIVER)
        answers = [status(code, f"location: {target}") for target in targets]
        async with Receiver(*answers) as receiver:
            for target in targets:
                end = await outcome(fetcher, receiver.url(host=RECEIVER), tmp_path / "image")
                assert (target, end) == (target, "refused")
            assert receiver.connections == len(targets)
        assert len(network.connected) == len(targets)
        assert traps.connections == 0


async def test_no_second_answer_of_a_name_server_gets_out(tmp_path: Path) -> None:
    """1,000 downloads from a name that is public and private by turns."""
    answers = (addresses(["93.184.216.34"]), addresses(["127.0.0.1"]))
    asked = 0

    async def rebinding(_name: str) -> list[Address]:
        nonlocal asked
        asked += 1
        return answers[asked % 2]

    network = Recorder()
    fetcher = make_fetcher(network, look_up=rebinding)
    async with Traps() as traps:
        url = f"http://rebinding.example:{traps.ports[0]}/"
        ends = [await outcome(fetcher, url, tmp_path / "image") for _ in range(1000)]
        assert traps.connections == 0
    assert asked == 1000
    assert ends.count("refused") == 500
    assert network.connected == ["93.184.216.34"] * 500


async def test_no_proxy_of_the_environment_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would see the requests, and decide about targets in our place."""
    async with Traps() as traps, Receiver() as receiver:
        for name in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy"):
            for spelling in (name, name.upper()):
                monkeypatch.setenv(spelling, f"http://127.0.0.1:{traps.ports[0]}")
        monkeypatch.setenv("NO_PROXY", "")
        fetcher = make_fetcher(Recorder(), RECEIVER)
        url = receiver.url(host=RECEIVER)
        assert await outcome(fetcher, url, tmp_path / "image") == "fetched"
        for refused in (
            f"http://127.0.0.1:{traps.ports[0]}/",
            "http://8.8.8.8/",
            "https://8.8.8.8",
        ):
            assert await outcome(fetcher, refused, tmp_path / "image") != "fetched"
        assert traps.connections == 0


BLOCKS = [
    ipaddress.IPv4Network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4"),
        *("240.0.0.0/4", "127.0.0.1/32", "169.254.169.254/32"),
    )
]
PRIVATE = st.one_of(
    [st.integers(int(block[0]), int(block[-1])).map(ipaddress.IPv4Address) for block in BLOCKS]
)


def _octets(address: ipaddress.IPv4Address) -> tuple[int, int, int, int]:
    first, second, third, fourth = address.packed
    return first, second, third, fourth


def _ipv6(number: int) -> str:
    return f"[{ipaddress.IPv6Address(number)}]"


SPELLERS: list[Callable[[ipaddress.IPv4Address, random.Random], str]] = [
    lambda address, _: str(address),
    lambda address, _: f"{address}.",
    lambda address, _: str(int(address)),
    lambda address, _: f"{int(address):#x}",
    lambda address, _: f"0{int(address):o}",
    lambda address, _: f"{address.packed[0]}.{int(address) & 0xFFFFFF}",
    lambda address, _: "{}.{}.{}".format(*address.packed[:2], int(address) & 0xFFFF),
    lambda address, _: "{:#x}.{:#x}.{:#x}.{:#x}".format(*_octets(address)),
    lambda address, _: "0{:o}.0{:o}.{}.{}".format(*_octets(address)),
    lambda address, _: "{:#x}.{}.0{:o}.{}".format(*_octets(address)),
    lambda address, _: f"[::ffff:{address}]",
    lambda address, _: _ipv6(0xFFFF << 32 | int(address)),
    lambda address, _: f"[::{address}]",
    lambda address, _: f"[64:ff9b::{address}]",
    lambda address, rng: _ipv6(0x64FF9B0001 << 88 | rng.getrandbits(48) << 32 | int(address)),
    lambda address, rng: _ipv6(0x2002 << 112 | int(address) << 80 | rng.getrandbits(80)),
    lambda address, rng: _ipv6(
        0x20010000 << 96 | rng.getrandbits(64) << 32 | int(address) ^ 0xFFFFFFFF
    ),
    lambda address, rng: _ipv6(0x20010000 << 96 | int(address) << 64 | rng.getrandbits(64)),
    lambda address, rng: _ipv6(
        0x2606 << 112 | rng.getrandbits(48) << 64 | 0x5EFE << 32 | int(address)
    ),
    lambda address, rng: _ipv6(
        0x2A00 << 112 | rng.getrandbits(48) << 64 | 0x02005EFE << 32 | int(address)
    ),
]


def test_no_generated_vector_gets_out(tmp_path: Path) -> None:
    """Thousands of private addresses, each spelled or wrapped in one of twenty ways."""
    network = Recorder()
    fetcher = make_fetcher(network)
    ends: list[str] = []

    async def prepare() -> Traps:
        return await Traps().__aenter__()

    with asyncio.Runner() as runner:
        run: Callable[[Awaitable[str]], str] = runner.run  # type: ignore[assignment]
        traps = runner.run(prepare())

        @settings(
            max_examples=GENERATED,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(PRIVATE, st.sampled_from(SPELLERS), st.randoms(use_true_random=False))
        def attempt(
            address: ipaddress.IPv4Address,
            spell: Callable[[ipaddress.IPv4Address, random.Random], str],
            rng: random.Random,
        ) -> None:
            port = traps.ports[len(ends) % len(traps.ports)]
            url = f"http://{spell(address, rng)}:{port}/"
            ends.append(run(outcome(fetcher, url, tmp_path / "image")))
            assert ends[-1] == "refused" or "cannot be resolved" in ends[-1], url
            assert network.connected == []

        attempt()
        runner.run(traps.__aexit__(None, None, None))
    assert traps.connections == 0
    assert len(ends) >= GENERATED
    assert ends.count("refused") > len(ends) * 0.9
