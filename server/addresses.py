"""Which IP addresses belong to the public internet: pure judgement, no network.

The tables are those of IANA's special-purpose registries
(https://www.iana.org/assignments/iana-ipv4-special-registry, .../iana-ipv6-special-registry),
multicast, what was withdrawn, and one address of a cloud. Python's own flags (`is_global` and its
like) say yes to dangerous addresses and change their mind between releases.
"""

import ipaddress
from collections.abc import Mapping
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SPECIAL_IPV4 = {
    ipaddress.IPv4Network(block): what
    for block, what in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared by a carrier's customers",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "the host of an Azure machine",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "protocol assignments",
        "192.0.2.0/24": "documentation",
        "192.31.196.0/24": "AS112",
        "192.52.193.0/24": "multicast tunnels (AMT)",
        "192.88.99.0/24": "6to4 relays",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "AS112",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        "255.255.255.255/32": "broadcast",
    }.items()
}

SPECIAL_IPV6 = {
    ipaddress.IPv6Network(block): what
    for block, what in {
        "::/128": "unspecified",
        "::1/128": "loopback",
        "::/96": "IPv4-compatible, withdrawn",
        "64:ff9b:1::/48": "local NAT64",
        "100::/64": "discarded",
        "100:0:0:1::/64": "a dummy prefix",
        "2001::/23": "protocol assignments, Teredo and ORCHID among them",
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4, withdrawn",
        "2620:4f:8000::/48": "AS112",
        "3ffe::/16": "6bone, withdrawn",
        "3fff::/20": "documentation",
        "5f00::/16": "segment routing",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local, withdrawn",
        "ff00::/8": "multicast",
    }.items()
}

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA gives out; what is outside, special or not, is not the internet."""

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""The IPv4 internet seen from an IPv6-only network (RFC 6052): judged by the address inside.

Transition schemes that are withdrawn (6to4, Teredo, IPv4-compatible) or private to a network
(64:ff9b:1::/48) are refused whole, whatever address they carry.
"""

ISATAP_MARKS = (0x0000_5EFE, 0x0200_5EFE)
"""The upper half of an interface identifier whose lower half is an IPv4 address (RFC 5214)."""

_LOW_32_BITS = 0xFFFF_FFFF


def is_public(address: Address) -> bool:
    """Say whether an address is on the public internet; in doubt it is not."""
    return why_not_public(address) is None


def why_not_public(address: Address) -> str | None:
    """Return what kind of address it is instead, for the operator's log, or None if public."""
    if isinstance(address, ipaddress.IPv4Address):
        return _find(address, SPECIAL_IPV4)
    if address.scope_id is not None:
        return "of one interface"
    special = _find(address, SPECIAL_IPV6)
    if special:
        return special
    inner = _hidden_ipv4(address)
    if inner and (why := why_not_public(inner)):
        return f"{why}, hidden in IPv6"
    if address in GLOBAL_UNICAST or inner:
        return None
    return "not given out"


def _find(address: Address, blocks: Mapping[Any, str]) -> str | None:
    return next((what for block, what in blocks.items() if address in block), None)


def _hidden_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to this one would end at, if there is one."""
    low = ipaddress.IPv4Address(int(address) & _LOW_32_BITS)
    isatap = int(address) >> 32 & _LOW_32_BITS in ISATAP_MARKS
    return low if address.ipv4_mapped or address in NAT64 or isatap else None
