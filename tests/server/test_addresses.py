"""The judgement over addresses: first, last and just outside of every special block."""

import ipaddress

import pytest

from server.addresses import is_public, why_not_public
from tests.server.ssrf import PRIVATE_IPV4, PRIVATE_IPV6, PUBLIC, addresses


def test_nothing_special_is_public() -> None:
    """Every block of IANA's registries, and IPv4 of these blocks hidden in IPv6."""
    table = addresses(PRIVATE_IPV4 + PRIVATE_IPV6)
    assert len(set(table)) >= 120
    assert [str(address) for address in table if is_public(address)] == []


def test_the_internet_is_public() -> None:
    """The neighbours of the special blocks, and addresses that many use."""
    table = addresses(PUBLIC)
    assert len(set(table)) >= 40
    assert {str(address): why_not_public(address) for address in table} == {
        str(address): None for address in table
    }


@pytest.mark.parametrize("text", ["fe80::1%1", "2606:4700::1111%1", "::ffff:8.8.8.8%1"])
def test_an_address_with_a_scope_is_not_public(text: str) -> None:
    """It means another machine on each interface."""
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private, hidden in IPv6"),
        ("64:ff9b::169.254.169.254", "link-local, hidden in IPv6"),
        ("255.255.255.255", "reserved"),
        ("4000::1", "not given out"),
    ],
)
def test_the_reason_is_told(text: str, why: str) -> None:
    """For the operator's log."""
    assert why_not_public(ipaddress.ip_address(text)) == why
