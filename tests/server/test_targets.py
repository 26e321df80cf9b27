"""The allow-list: what its entries mean, and that addresses are judged, not spellings."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from server.errors import ConfigurationError
from server.targets import AllowList, RefusedTargetError, look_up

pytestmark = pytest.mark.anyio

SETTING = "FLUX2_WEBHOOK_ALLOW"
FakeNames = Callable[[dict[str, list[str]]], list[str]]


@pytest.fixture
def fake_names(monkeypatch: pytest.MonkeyPatch) -> FakeNames:
    """Return a function that replaces the name server; it gives the list of names asked for.

    Numbers are still read by the real resolver.
    """
    real = socket.getaddrinfo

    def install(names: dict[str, list[str]]) -> list[str]:
        asked: list[str] = []

        def fake(host: bytes, *arguments: Any, **options: Any) -> Any:
            name = host.decode()
            if name not in names:
                return real(host, *arguments, **{**options, "flags": socket.AI_NUMERICHOST})
            asked.append(name)
            if not names[name]:
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            return [entry for address in names[name] for entry in real(address, None)]

        monkeypatch.setattr(socket, "getaddrinfo", fake)
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
        # Some of its addresses are allowed: only these are connected to.
        (["192.0.2.0/24"], "two.example", ["192.0.2.2"]),
        # The kernel would connect to the IPv4 address inside, so that is what counts.
        (["192.0.2.0/24"], "::ffff:192.0.2.9", ["192.0.2.9"]),
        (["192.0.2.0/24"], "0xc0000201", ["192.0.2.1"]),
    ],
)
async def test_what_is_listed_is_allowed(
    fake_names: FakeNames, entries: list[str], host: str, expected: list[str]
) -> None:
    """Names match in any case, and networks match the addresses a name has."""
    known = ["hook.example", "a.b.example", "xn--bcher-kva.example"]
    fake_names(
        {**{name: ["192.0.2.1"] for name in known}, "two.example": ["198.51.100.2", "192.0.2.2"]}
    )
    addresses = await allow(*entries).resolve(host)
    assert list(dict.fromkeys(addresses)) == expected


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
    ],
)
async def test_what_is_not_listed_is_refused(
    fake_names: FakeNames, entries: list[str], host: str
) -> None:
    """Neighbouring names and other spellings of addresses do not slip through."""
    known = ["hook.example", "evilhook.example", "hook.example.evil", "sub.hook.example", "example"]
    fake_names({name: ["192.0.2.1"] for name in known})
    with pytest.raises(RefusedTargetError, match=SETTING):
        await allow(*entries).resolve(host)


async def test_a_name_that_no_entry_can_allow_is_not_even_looked_up(
    fake_names: FakeNames,
) -> None:
    """A look-up is a message to whoever owns the name."""
    asked = fake_names({"secret.evil.example": ["192.0.2.1"]})
    for entries in ([], ["hook.example", "*.good.example"]):
        with pytest.raises(RefusedTargetError):
            await allow(*entries).resolve("secret.evil.example")
    assert asked == []


async def test_a_name_without_an_address_is_an_error_of_the_moment(fake_names: FakeNames) -> None:
    """The name server may be down: that is no refusal, and may be tried again."""
    fake_names({"hook.example": []})
    for entry in ("hook.example", "10.0.0.0/8"):
        with pytest.raises(OSError, match="no such name"):
            await allow(entry).resolve("hook.example")


@pytest.mark.parametrize("name", ["b\u00fccher", "a\x00b", "x" * 70, ".."])
async def test_no_name_breaks_the_look_up(name: str) -> None:
    """Whatever a URL may hold ends as an error that the sender knows."""
    with pytest.raises(OSError, match=r".+"):
        await look_up(name)


@pytest.mark.parametrize(
    "entry",
    ["http://hook.example", "hook.example:443", "10.0.0.1/8", "10.0.0.0/40", "*", "a b", "*.*.a"],
)
def test_a_wrong_entry_stops_the_start(entry: str) -> None:
    """An entry that can match nothing would be found out too late, by a lost webhook."""
    with pytest.raises(ConfigurationError, match=SETTING):
        allow("good.example", entry)
