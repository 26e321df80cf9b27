"""The names and addresses that go into the certificate."""

import ipaddress
import socket
from pathlib import Path

import pytest

from server.errors import ConfigurationError
from server.machine import LOOPBACK_NAMES, machine_names, normalise_name

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
Local:
     +-- 10.1.2.0/24 2 0 2
        |-- 10.1.2.0
           /24 link UNICAST
        |-- 10.1.2.30
           /32 host LOCAL
        |-- 10.1.2.4
           /32 host LOCAL
        |-- 10.1.2.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
"""

IF_INET6 = """\
fd000000000000000000000000000002 02 40 00 80     eth0
fd00000000000000abcdef0123456789 02 40 00 01     eth0
fe8000000000000000fc00fffe000001 02 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """Make an empty folder in the place of /etc."""
    folder = tmp_path / "etc"
    folder.mkdir()
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Make a folder like /proc, with the kernel's two tables of addresses."""
    folder = tmp_path / "proc"
    (folder / "net").mkdir(parents=True)
    (folder / "net" / "fib_trie").write_text(FIB_TRIE)
    (folder / "net" / "if_inet6").write_text(IF_INET6)
    return folder


def test_real_machine_is_named_by_its_host_name_first() -> None:
    """What a client calls the box comes first, so that a command can print it."""
    assert machine_names()[0] == normalise_name(socket.gethostname())


def test_real_addresses_belong_to_this_machine() -> None:
    """Each address found is one that a socket can be bound to."""
    for name in machine_names():
        if name in LOOPBACK_NAMES:
            continue
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            continue
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as bound:
            bound.bind((name, 0))


def test_addresses_of_the_kernel_are_found_in_order(etc: Path, proc: Path) -> None:
    """Networks, broadcast, link-local and temporary addresses stay out; loopback comes last."""
    assert machine_names(etc, proc)[1:] == [
        "10.1.2.4",
        "10.1.2.30",
        "fd00::2",
        "localhost",
        "127.0.0.1",
        "::1",
    ]


def test_names_without_any_file_are_still_the_host_and_loopback(tmp_path: Path) -> None:
    """A system without these files, or a sandbox that hides them, is no error."""
    host = normalise_name(socket.gethostname())
    assert machine_names(tmp_path, tmp_path) == [host, *LOOPBACK_NAMES]


def test_hosts_file_gives_the_full_name(etc: Path, tmp_path: Path) -> None:
    """Lines that name this machine count, comments and other machines do not."""
    host = socket.gethostname()
    (etc / "hosts").write_text(
        f"127.0.1.1 Box.Corp.Example {host} not_*_a_name\n"
        f"# 10.0.0.1 old.example {host}\n"
        "10.0.0.9 other.example other\n"
    )
    assert machine_names(etc, tmp_path)[1] == "box.corp.example"
    assert not {"other.example", "old.example", "not_*_a_name"} & set(machine_names(etc, tmp_path))


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Box.Corp.Example.", "box.corp.example"),
        ("gpu_box-1", "gpu_box-1"),
        ("*.box.example", "*.box.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("10.0.0.7", "10.0.0.7"),
        ("[FD00:0::2]", "fd00::2"),
    ],
)
def test_names_are_normalised(text: str, normalised: str) -> None:
    """Two spellings of one name must not look like two names."""
    assert normalise_name(text) == normalised


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "https://box",
        "box:8443",
        "two words",
        "-box",
        "fe80::1%eth0",
        "a" * 64,
        "a." * 127 + "a",
    ],
)
def test_other_text_is_refused_by_name(text: str) -> None:
    """An operator who passes a URL or a port is told so, instead of getting a useless name."""
    with pytest.raises(ConfigurationError, match="neither a host name nor an IP address"):
        normalise_name(text)


@pytest.mark.parametrize("line", ["search corp.example other", "domain corp.example"])
def test_search_domain_completes_a_short_host_name(etc: Path, tmp_path: Path, line: str) -> None:
    """Others on the network reach a short-named box by the domain their resolver adds."""
    host = socket.gethostname()
    (etc / "resolv.conf").write_text(f"nameserver 10.0.0.53\n{line}\n")
    completed = f"{normalise_name(host)}.corp.example"
    expected = "." not in host and host != "localhost"
    assert (completed in machine_names(etc, tmp_path)) == expected
