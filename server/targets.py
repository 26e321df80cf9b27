"""Where the server may connect to: the names, addresses and networks that the operator lists."""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from server.errors import ConfigurationError
from server.machine import normalise_name

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RefusedTargetError(Exception):
    """The operator does not allow connections to this target; none was made."""


@dataclass(frozen=True, slots=True)
class AllowList:
    """Host names, `*.` and the end of host names, and networks. Empty: nothing is allowed.

    `setting` is its name for the operator, in the messages of refusals.
    """

    setting: str
    names: frozenset[str]
    endings: tuple[str, ...]
    networks: tuple[Network, ...]

    @classmethod
    def parse(cls, setting: str, entries: Iterable[str]) -> Self:
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
        return cls(setting, frozenset(names), tuple(endings), tuple(networks))

    async def resolve(self, host: str) -> list[str]:
        """Return the addresses to connect to for `host`: the one decision about a target.

        A listed name may have any address. Any other host is judged by the addresses it has at
        this moment, and only the allowed ones come back; whoever connects to them cannot be sent
        elsewhere by a second answer of the name server. Raises `RefusedTargetError`, and OSError
        when the name cannot be resolved.
        """
        name = host.lower().removesuffix(".")
        if name in self.names or name.endswith(self.endings):
            return [str(address) for address in await look_up(name)]
        if self.networks:
            addresses = [
                address
                for address in await look_up(name)
                if any(address in network for network in self.networks)
            ]
            if addresses:
                return [str(address) for address in addresses]
        raise RefusedTargetError(f"{host} is not in {self.setting}")


async def look_up(name: str) -> list[Address]:
    """Return the addresses of a host name or of an address in any spelling, best first.

    IPv4 inside IPv6 is unwrapped, as the kernel would when connecting; addresses that mean
    something on one interface only are left out. Raises OSError when there is no answer.
    """
    with contextlib.suppress(ValueError):
        return _usable([(name, 0)])  # as it is, most of the time in a closed network
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
        found = _look_up(name)
        with contextlib.suppress(RuntimeError):  # the loop has ended, nobody waits
            loop.call_soon_threadsafe(settle, found)

    # Not in a pool: a dead name server would fill the default one, which also stores images, and
    # any other would hold up the end of the process.
    threading.Thread(target=work, name="look-up", daemon=True).start()
    return await answer


def _look_up(name: str) -> list[Address] | OSError:
    try:
        # Bytes: a text would go through Python's own idna rules, which raise other errors.
        answers = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except ValueError:
        return OSError(f"{name} is not a host name")
    return _usable(place for *_, place in answers)


def _usable(places: Iterable[tuple[Any, ...]]) -> list[Address]:
    """Return the addresses to connect to of what the socket module calls addresses.

    Raises ValueError for what is not an address.
    """
    found: list[Address] = []
    for text, _, *rest in places:
        address = ipaddress.ip_address(str(text))
        if isinstance(address, ipaddress.IPv6Address):
            # An interface comes as a fourth item or behind a percent sign.
            if address.scope_id or (rest and rest[-1]):
                continue
            address = address.ipv4_mapped or address
        found.append(address)
    return found


def _network(entry: str) -> Network | None:
    """Return the network of an address or a CIDR, or None when it looks like neither."""
    text = entry.removeprefix("[").removesuffix("]")
    if "/" in text:
        return ipaddress.ip_network(text)
    with contextlib.suppress(ValueError):
        return ipaddress.ip_network(text)
    return None
