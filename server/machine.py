"""What this machine is called, found without asking the network.

A lookup through DNS would wait for the resolver's time-out at every start of a box that has no
network, so the names come from files and the addresses from the kernel's tables.
"""

import contextlib
import ipaddress
import re
import socket
from pathlib import Path

from server.errors import ConfigurationError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*{_LABEL}")
_DNS_NAME_CHARACTERS = 253

_IPV4_OF_THIS_HOST = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
"""Two lines of `/proc/net/fib_trie`: an address, and that packets to it end here."""

_IPV6_GLOBAL_SCOPE = 0x00
_IPV6_TEMPORARY = 0x01
"""`IFA_F_TEMPORARY` of Linux: a privacy address for outgoing traffic."""


def machine_names(etc: Path = Path("/etc"), proc: Path = Path("/proc")) -> list[str]:
    """List this machine's names and addresses, its host name first and loopback last.

    Link-local IPv6 addresses are left out, since they mean nothing without an interface, and so
    are temporary ones, which change daily. `etc` and `proc` are parameters for tests.
    """
    host = socket.gethostname()
    names = [host, *_names_in_hosts(_read(etc / "hosts"), host)]
    domain = _search_domain(_read(etc / "resolv.conf"))
    if domain and "." not in host and host != "localhost":
        names.append(f"{host}.{domain}")
    usable = []
    for name in names:
        with contextlib.suppress(ConfigurationError):
            usable.append(normalise_name(name))
    return list(dict.fromkeys([*usable, *_ipv4(proc), *_ipv6(proc), *LOOPBACK_NAMES]))


def normalise_name(text: str) -> str:
    """Return a host name in lower case and punycode, or an IP address in its shortest form.

    `*.` in front of a name is allowed, brackets around an IPv6 address are dropped. Raises
    `ConfigurationError` for anything else, such as a URL, a port or a zone (`fe80::1%eth0`).
    """
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
        if "%" not in str(address):
            return str(address)
    try:
        name = text.removesuffix(".").lower().encode("idna").decode()
    except UnicodeError:
        name = ""
    if len(name) > _DNS_NAME_CHARACTERS or not _DNS_NAME.fullmatch(name):
        raise ConfigurationError(f"{text!r} is neither a host name nor an IP address")
    return name


def is_address(name: str) -> bool:
    """Say whether a normalised name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _names_in_hosts(hosts: str, host: str) -> list[str]:
    """Return all names on the lines of a hosts file that name this machine."""
    lines = [line.partition("#")[0].split()[1:] for line in hosts.splitlines()]
    return [name for names in lines if host in names for name in names]


def _search_domain(resolv_conf: str) -> str | None:
    """Return the domain that the resolver appends first: with it, others complete our name."""
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in ("domain", "search") and words[1] != ".":
            return words[1]
    return None


def _ipv4(proc: Path) -> list[str]:
    found = set(_IPV4_OF_THIS_HOST.findall(_read(proc / "net" / "fib_trie")))
    addresses = sorted(map(ipaddress.IPv4Address, found))
    return [str(address) for address in addresses if not address.is_loopback]


def _ipv6(proc: Path) -> list[str]:
    """Read lines like `fd00...0002 04 40 00 80 eth0`: address, index, prefix, scope, flags."""
    found = []
    for line in _read(proc / "net" / "if_inet6").splitlines():
        digits, _, _, scope, flags, _ = line.split()
        if int(scope, 16) == _IPV6_GLOBAL_SCOPE and not int(flags, 16) & _IPV6_TEMPORARY:
            found.append(ipaddress.IPv6Address(bytes.fromhex(digits)))
    return [str(address) for address in sorted(found)]


def _read(path: Path) -> str:
    """Return the text of a file that not every system has, or nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
