"""Where the server may connect to: the public internet, and what the operator lists beside it."""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from server.addresses import Address, Network, why_not_public
from server.errors import ConfigurationError
from server.machine import normalise_name

WEB_PORTS = (80, 443)
FIRST_FREE_PORT = 1024
"""Below it each port is another service's (mail, shells, files); above, web servers are common."""

BAD_PORTS = frozenset(
    {
        *(1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566),
        *range(6665, 6670),
        *(6679, 6697, 10080),
    }
)
"""What browsers refuse too, of the ports from 1024 (https://fetch.spec.whatwg.org/#port-blocking):
services that would take an HTTP request for their own."""

LOOK_UPS_AT_ONCE = 32
"""Each is a thread, and one that asks a dead name server lives for tens of seconds."""

LookUp = Callable[[str], Awaitable[Sequence[Address]]]
"""Gives the addresses of a host name. Raises OSError when there are none."""


class RefusedTargetError(Exception):
    """Connections to this target are not allowed; none was made."""


class NameServer:
    """The machine's resolver, asked in threads of which there is a limited number."""

    def __init__(self, at_once: int = LOOK_UPS_AT_ONCE) -> None:
        self._places = threading.BoundedSemaphore(at_once)

    async def look_up(self, name: str) -> list[Address]:
        """Return the addresses of a host name or of an address in any spelling, best first.

        IPv4 inside IPv6 is unwrapped, as the kernel would when connecting. Raises OSError when
        there is no answer, or when too many others are being waited for.
        """
        with contextlib.suppress(ValueError):
            return [_address(name)]
        if not self._places.acquire(blocking=False):
            raise OSError("too many names are being looked up")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Address]] = loop.create_future()

        def settle(found: list[Address] | OSError) -> None:
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def work() -> None:
            try:
                found = _look_up(name)
            finally:
                self._places.release()
            with contextlib.suppress(RuntimeError):  # the loop has ended, nobody waits
                loop.call_soon_threadsafe(settle, found)

        # Not in a pool: a dead name server would fill the default one, which also stores images,
        # and any other would hold up the end of the process.
        threading.Thread(target=work, name="look-up", daemon=True).start()
        return await answer


@dataclass(frozen=True, slots=True)
class AllowList:
    """Host names, `*.` and the end of host names, and networks that are allowed beside the public.

    `setting` is its name for the operator, in the messages of refusals.
    """

    setting: str
    names: frozenset[str]
    endings: tuple[str, ...]
    networks: tuple[Network, ...]
    look_up: LookUp

    @classmethod
    def parse(cls, setting: str, entries: Iterable[str], look_up: LookUp | None = None) -> Self:
        """Read entries such as `hooks.example`, `*.example`, `10.1.2.3` and `10.0.0.0/8`.

        Raises `ConfigurationError` for anything else, such as a URL or a port.
        """
        names: set[str] = set()
        endings: list[str] = []
        networks: list[Network] = []
        for entry in entries:
            try:
                network = _network(entry)
                name = "" if network else normalise_name(entry)
            except (ValueError, ConfigurationError) as error:
                raise ConfigurationError(f"{setting}: {error}") from error
            if network is not None:
                networks.append(network)
                continue
            if name.startswith("*."):
                endings.append(name.removeprefix("*"))
            else:
                names.add(name)
        parts = (setting, frozenset(names), tuple(endings), tuple(networks))
        return cls(*parts, look_up or NameServer().look_up)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses to connect to for `host`: the one decision about a target.

        A listed name may have any address. Any other host is judged by the addresses it has at
        this moment: each of them must be in a listed network, or public, of another machine and
        with a port of the web. Whoever connects to what comes back cannot be sent elsewhere by a
        second answer of the name server. Raises `RefusedTargetError`, and OSError when the name
        cannot be resolved.
        """
        name = host.lower().removesuffix(".")
        addresses = await self.look_up(name)
        if name not in self.names and not name.endswith(self.endings):
            for address in addresses:
                why = self._why_refused(address, port)
                if why:
                    raise RefusedTargetError(f"{host} is not in {self.setting}: {why}")
        usable = [str(address) for address in addresses if not _has_scope(address)]
        if not usable:
            raise RefusedTargetError(f"{host} has no address that means the same everywhere")
        return list(dict.fromkeys(usable))

    def _why_refused(self, address: Address, port: int) -> str | None:
        if not _has_scope(address) and any(address in network for network in self.networks):
            return None
        why = why_not_public(address)
        if why:
            return f"{address} is {why}"
        if _is_this_machine(address):
            return f"{address} is this machine"
        return None if _is_web_port(port) else f"{port} is no port of the web"


def _is_web_port(port: int) -> bool:
    return port in WEB_PORTS or (port >= FIRST_FREE_PORT and port not in BAD_PORTS)


def _is_this_machine(address: Address) -> bool:
    """Say whether packets to a public address end here, behind every firewall but our own.

    The kernel gives them the same address as their source then; no packet is sent to find out. A
    second IPv4 address in the network of the first is not recognised: its source is the first.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((str(address), WEB_PORTS[0]))
        return ipaddress.ip_address(probe.getsockname()[0]) == address
    return False


def _has_scope(address: Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None


def _look_up(name: str) -> list[Address] | OSError:
    try:
        # Bytes: a text would go through Python's own idna rules, which raise other errors.
        answers = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
        return [_address(*place) for *_, place in answers]
    except OSError as error:
        return error
    except ValueError:
        return OSError(f"{name} is not a host name")


def _address(text: Any, _port: Any = 0, _flow: Any = 0, scope: Any = 0) -> Address:
    """Read what the socket module calls an address; an interface is its scope.

    Raises ValueError for what is not an address.
    """
    address = ipaddress.ip_address(str(text))
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if scope and address.scope_id is None:
        return ipaddress.IPv6Address(f"{address}%{scope}")
    return address.ipv4_mapped or address


def _network(entry: str) -> Network | None:
    """Return the network of an address or a CIDR, or None when it looks like neither."""
    text = entry.removeprefix("[").removesuffix("]")
    if "/" in text:
        return ipaddress.ip_network(text)
    with contextlib.suppress(ValueError):
        return ipaddress.ip_network(text)
    return None
