"""The allow-list: what its entries mean, and that addresses are judged, not spellings."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from server.errors import ConfigurationError
from server.targets import AllowList, NameServer, RefusedTargetError
from tests.server.ssrf import BAD_PORTS_ABOVE, fake_getaddrinfo

pytestmark = pytest.mark.anyio

SETTING = "FLUX2_WEBHOOK_ALLOW"
FakeNames = Callable[[dict[str, list[str]]], list[str]]


@pytest.fixture
def fake_names(monkeypatch: pytest.MonkeyPatch) -> FakeNames:
    """Return a function that replaces the name server; it gives the list of names asked for."""

    def install(names: dict[str, list[str]]) -> list[str]:
        asked: list[str] = []
        monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo(names, asked))
        return asked

    return install


def allow(*entries: str) -> AllowList:
    """Parse an allow-list."""
    return AllowList.parse(SETTING, entries)


@pytest.mark.parametrize(
    ("entries", "host", "expected"),
    [
        (["hook.example"], "hook.example", ["192.0.2.1"]),
        (["hook.example"], "HOOK.Example.", ["192.0.2.1"]),
        (["Hook.Example."], "hook.example", ["192.0.2.1"]),
        (["b\u00fccher.example"], "xn--bcher-kva.example", ["192.0.2.1"]),
        (["*.example"], "a.b.example", ["192.0.2.1"]),
        (["192.0.2.0/24"], "hook.example", ["192.0.2.1"]),
        (["192.0.2.1"], "hook.example", ["192.0.2.1"]),
        (["192.0.2.0/24"], "192.0.2.77", ["192.0.2.77"]),
        (["2001:db8::/32"], "2001:db8::5", ["2001:db8::5"]),
        (["[2001:db8::5]"], "2001:db8::5", ["2001:db8::5"]),
        # The kernel would connect to the IPv4 address inside, so that is what counts.
        (["192.0.2.0/24"], "::ffff:192.0.2.9", ["192.0.2.9"]),
        (["192.0.2.0/24"], "0xc0000201", ["192.0.2.1"]),
        # What is public needs no entry, and may stand beside what is listed.
        ([], "public.example", ["8.8.8.8", "2606:4700::1"]),
        ([], "93.184.216.34", ["93.184.216.34"]),
        ([], "::ffff:8.8.8.8", ["8.8.8.8"]),
        (["10.0.0.0/8"], "public.example", ["8.8.8.8", "2606:4700::1"]),
        (["10.0.0.0/8"], "both.example", ["10.0.0.1", "8.8.8.8"]),
        # A listed name may have any address that can be connected to without an interface.
        (["printer.example"], "printer.example", ["192.168.1.9"]),
    ],
)
async def test_what_is_listed_is_allowed(
    fake_names: FakeNames, entries: list[str], host: str, expected: list[str]
) -> None:
    """Names match in any case, and networks match the addresses a name has."""
    known = ["hook.example", "a.b.example", "xn--bcher-kva.example"]
    fake_names(
        {
            **{name: ["192.0.2.1"] for name in known},
            "public.example": ["8.8.8.8", "2606:4700::1"],
            "both.example": ["10.0.0.1", "8.8.8.8"],
            "printer.example": ["fe80::1%1", "192.168.1.9"],
        }
    )
    assert await allow(*entries).resolve(host, 80) == expected


@pytest.mark.parametrize(
    ("entries", "host"),
    [
        ([], "127.0.0.1"),
        (["hook.example"], "evilhook.example"),
        (["hook.example"], "hook.example.evil"),
        (["hook.example"], "sub.hook.example"),
        (["*.example"], "example"),
        (["*.hook.example"], "evilhook.example"),
        (["hook.example"], "192.0.2.1"),
        (["10.0.0.0/8"], "hook.example"),
        (["10.0.0.0/8"], "127.0.0.1"),
        (["10.0.0.0/8"], "2130706433"),
        (["10.0.0.0/8"], "0x7f.1"),
        (["10.0.0.0/8"], "0"),
        (["10.0.0.0/8"], "::ffff:127.0.0.1"),
        (["::/0"], "::ffff:127.0.0.1"),
        (["0.0.0.0/0"], "::1"),
        # Means one thing on each interface, so it means nothing here.
        (["::/0"], "fe80::1%1"),
        ([], "2606:4700::1%1"),
        (["scope.example"], "scope.example"),
        # One private address is enough.
        ([], "two.example"),
        (["192.0.2.0/24"], "two.example"),
    ],
)
async def test_what_is_not_listed_is_refused(
    fake_names: FakeNames, entries: list[str], host: str
) -> None:
    """Neighbouring names and other spellings of addresses do not slip through."""
    known = ["hook.example", "evilhook.example", "hook.example.evil", "sub.hook.example", "example"]
    fake_names(
        {
            **{name: ["192.0.2.1"] for name in known},
            "scope.example": ["fe80::1%1"],
            "two.example": ["8.8.8.8", "192.0.2.2", "198.51.100.2"],
        }
    )
    with pytest.raises(RefusedTargetError):
        await allow(*entries).resolve(host, 80)


async def test_a_refusal_names_the_setting_and_the_reason(fake_names: FakeNames) -> None:
    """The operator reads in the log what to set."""
    fake_names({"hook.example": ["10.0.0.1"]})
    with pytest.raises(RefusedTargetError) as refused:
        await allow().resolve("hook.example", 80)
    assert str(refused.value) == f"hook.example is not in {SETTING}: 10.0.0.1 is private"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_this_machine_is_not_public(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Even under a public address: what listens there may be behind a firewall for all others."""
    monkeypatch.setattr("server.targets.why_not_public", lambda _address: None)
    with pytest.raises(RefusedTargetError, match=f"{host} is this machine"):
        await allow().resolve(host, 8000)
    assert await allow(host).resolve(host, 8000) == [host]
    assert await allow().resolve("203.0.113.7", 8000) == ["203.0.113.7"]


@pytest.mark.parametrize(
    ("port", "usable"),
    [
        *((port, True) for port in (80, 443, 1024, 3000, 8080, 8443, 9000, 65535)),
        *((port, False) for port in (1, 22, 25, 79, 81, 442, 444, 1023, *BAD_PORTS_ABOVE)),
    ],
)
async def test_public_addresses_have_the_ports_of_the_web(
    fake_names: FakeNames, port: int, usable: bool
) -> None:
    """A request could be taken for mail or chat by another service; what is listed has any port."""
    fake_names({"hook.example": ["8.8.8.8"]})
    for entry in ("hook.example", "8.8.8.0/24"):
        assert await allow(entry).resolve("hook.example", port) == ["8.8.8.8"]
    if usable:
        assert await allow().resolve("hook.example", port) == ["8.8.8.8"]
    else:
        with pytest.raises(RefusedTargetError, match=f"{port} is no port of the web"):
            await allow().resolve("hook.example", port)


async def test_a_name_without_an_address_is_an_error_of_the_moment(fake_names: FakeNames) -> None:
    """The name server may be down: that is no refusal, and may be tried again."""
    fake_names({"hook.example": []})
    for entry in ("hook.example", "10.0.0.0/8"):
        with pytest.raises(OSError, match="no such name"):
            await allow(entry).resolve("hook.example", 80)


@pytest.mark.parametrize("name", ["b\u00fccher", "a\x00b", "x" * 70, ".."])
async def test_no_name_breaks_the_look_up(name: str) -> None:
    """Whatever a URL may hold ends as an error that the sender knows."""
    with pytest.raises(OSError, match=r".+"):
        await NameServer().look_up(name)


async def test_a_dead_name_server_holds_a_limited_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who comes when all places are taken is told at once; a place is free when its thread ends."""
    answered = threading.Event()
    asked: list[bytes] = []

    def dead(name: bytes, *_arguments: Any, **_options: Any) -> Any:
        asked.append(name)
        answered.wait(30)
        return [(0, 0, 0, "", ("8.8.8.8", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", dead)
    names = NameServer(at_once=3)
    waiting = [asyncio.create_task(names.look_up(f"{number}.example")) for number in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # who has given up still has a thread that waits
    for _ in range(50):
        with pytest.raises(OSError, match="too many names"):
            await names.look_up("another.example")
    answered.set()
    assert [str(found) for (found,) in await asyncio.gather(*waiting[1:])] == ["8.8.8.8"] * 2
    assert sorted(asked) == [b"0.example", b"1.example", b"2.example"]
    assert await names.look_up("another.example")


@pytest.mark.parametrize(
    "entry",
    ["http://hook.example", "hook.example:443", "10.0.0.1/8", "10.0.0.0/40", "*", "a b", "*.*.a"],
)
def test_a_wrong_entry_stops_the_start(entry: str) -> None:
    """An entry that can match nothing would be found out too late, by a lost webhook."""
    with pytest.raises(ConfigurationError, match=SETTING):
        allow("good.example", entry)
