"""Targets that must not be reached and targets that must be, and traps that count who comes.

The addresses are written out, not derived from the server's tables: the first and the last of each
block, and their neighbours.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpcore2

EVERY_INTERFACE = "0.0.0.0"  # noqa: S104  (traps must listen everywhere)

PRIVATE_IPV4 = (
    *(EVERY_INTERFACE, "0.0.0.1", "0.255.255.255", "10.0.0.0", "10.0.0.1", "10.255.255.255"),
    *("100.64.0.0", "100.100.100.200", "100.127.255.255", "127.0.0.0", "127.0.0.1"),
    *("127.0.1.1", "127.255.255.255", "168.63.129.16", "169.254.0.0", "169.254.169.254"),
    *("169.254.170.2", "169.254.255.255", "172.16.0.0", "172.17.0.1", "172.31.255.255"),
    *("192.0.0.0", "192.0.0.9", "192.0.0.192", "192.0.0.255", "192.0.2.0", "192.0.2.255"),
    *("192.31.196.0", "192.31.196.255", "192.52.193.0", "192.52.193.255", "192.88.99.0"),
    *("192.88.99.255", "192.168.0.0", "192.168.1.1", "192.168.255.255", "192.175.48.0"),
    *("192.175.48.255", "198.18.0.0", "198.19.255.255", "198.51.100.0", "198.51.100.255"),
    *("203.0.113.0", "203.0.113.255", "224.0.0.0", "224.0.0.251", "239.255.255.255"),
    *("240.0.0.0", "255.255.255.254", "255.255.255.255"),
)

PRIVATE_IPV6 = (
    *("::", "::1", "::2", "::7f00:1", "::a00:1", "::8.8.8.8", "::ffff:ffff", "::1:0:0"),
    *("::ffff:0:0", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("::ffff:255.255.255.255", "::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"),
    *("64:ff9b::", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254"),
    *("64:ff9b::192.168.1.1", "64:ff9b::ffff:ffff", "64:ff9b::1:0:0", "64:ff9b:1::"),
    *("64:ff9b:1::7f00:1", "64:ff9b:1::8.8.8.8", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
    *("64:ff9b:2::1", "100::", "100::1", "100::ffff:ffff:ffff:ffff", "100:0:0:1::"),
    *("100:0:0:1:ffff:ffff:ffff:ffff", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    *("2001::", "2001:0:7f00:1::1", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "2001:1::1"),
    *("2001:2::", "2001:2::ffff", "2001:3::1", "2001:4:112::1", "2001:10::", "2001:1f::1"),
    *("2001:20::", "2001:2f:ffff::1", "2001:30::1", "2001:1ff:ffff::1", "2001:db8::"),
    *("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:7f00:1::", "2002:a00:1::1"),
    *("2002:a9fe:a9fe::", "2002:c0a8:101::1", "2002:808:808::1", "2002:ffff:ffff::"),
    *("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "3ffe::", "3ffe:ffff::1"),
    *("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "5f00::", "5f00:ffff::1"),
    *("8000::1", "fbff:ffff::1", "fc00::", "fd00:ec2::254", "fd20:ce::254", "fdff:ffff::1"),
    *("fe00::1", "fe80::", "fe80::1", "fe80::a9fe:a9fe", "febf:ffff::1", "fec0::", "fec0::1"),
    *("feff:ffff::1", "ff00::", "ff02::1", "ff05::2", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    *("2606:4700::5efe:7f00:1", "2606:4700::200:5efe:10.0.0.1", "2606:4700::5efe:c0a8:101"),
)

PUBLIC = (
    *("1.0.0.0", "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.216.34"),
    *("100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "151.101.1.140"),
    *("168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255"),
    *("172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.1.255", "192.0.3.0"),
    *("192.31.195.255", "192.31.197.0", "192.52.192.255", "192.52.194.0", "192.88.98.255"),
    *("192.88.100.0", "192.167.255.255", "192.169.0.0", "192.175.47.255", "192.175.49.0"),
    *("198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255"),
    *("203.0.114.0", "223.255.255.255", "2000::", "2001:200::", "2001:4860:4860::8888"),
    *("2001:db7:ffff::1", "2001:db9::", "2003::1", "2400:cb00::1", "2606:4700:4700::1111"),
    *("2620:4f:7fff::1", "2620:4f:8001::", "2a00:1450::1", "2c0f:fb50::1", "3ffd:ffff::1"),
    *("3fff:1000::", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b::5db8:d822"),
    *("2606:4700::5efe:8.8.8.8", "2606:4700::5eff:7f00:1"),
)

NAMES = {
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "ip6-localhost": ["::1"],
    "box": ["127.0.1.1"],
    "private.example": ["10.0.0.7"],
    "metadata.google.internal": ["169.254.169.254"],
    "instance-data": ["169.254.169.254"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "host.docker.internal": ["172.17.0.1"],
    "router.lan": ["192.168.1.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "ula.example": ["fd00::1"],
    "zero.example": [EVERY_INTERFACE],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "last-is-private.example": ["93.184.216.34", "127.0.0.1"],
    "first-is-private.example": ["127.0.0.1", "93.184.216.34"],
    "other-family.example": ["93.184.216.34", "::1"],
    "middle-is-private.example": ["8.8.8.8", "10.0.0.1", "8.8.4.4"],
    "xn--bcher-kva.example": ["127.0.0.1"],
}
"""What the name server of the tests says."""

SPELLINGS = (
    *("2130706433", "0x7f000001", "0X7F000001", "017700000001", "0x7f.1", "127.1", "127.0.1"),
    *("0x7f.0.0.1", "0177.1", "0177.0.1", "0x7f.0x0.0x0.0x1", "0x7F.0.1", "127.0x1"),
    *("127.0.0.1.", "127.1.", "2130706433.", "0", "0.0", "0x0", "00", "0.", "0x7f000001."),
    *("2852039166", "0xa9fea9fe", "0xA9FEA9FE", "169.16689662", "169.254.43518", "0xa9.0xfe.43518"),
    *("0251.0376.0251.0376", "167772161", "0xa000001", "10.1", "10.0.1", "012.1", "3232235777"),
    *("192.168.257", "0xc0a80101", "192.11010305", "4294967295", "0xffffffff", "037777777777"),
    *("0177.0.0.01", "127.000.000.001", "0000.0.0.0", "127.0.0.1%00", "127.0.0.1%20"),
    *("[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]", "[::0001]", "[0::1]"),
    *("[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]", "[::FFFF:127.0.0.1]", "[::127.0.0.1]"),
    *("[::1%1]", "[::1%25lo]", "[fe80::1%eth0]", "[fe80::1%251]", "[2606:4700::1%1]"),
    *("\u2460\u2461\u2466.0.0.1", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021"),
    *("127\uff0e0\uff0e0\uff0e1", "\u24db\u24de\u24d2alhost", "local\u00adhost"),
    *("%31%32%37.0.0.1", "127%2e0%2e0%2e1", "%6cocalhost", "LOCALHOST", "LocalHost."),
    *("b\u00fccher.example", "B\u00dcCHER.example", "private.EXAMPLE.", "localhost..", "..", "."),
)
"""Hosts that are, or that some parser takes for, an address or a name above."""

CONFUSIONS = (
    *("http://ok.example@127.0.0.1:{port}/", "http://ok.example:80@127.0.0.1:{port}/"),
    *("http://127.0.0.1:{port}@ok.example/", "http://127.0.0.1:{port}@localhost:{port}/"),
    *("http://user:password@8.8.8.8/", "http://user@8.8.8.8/", "http://:p@8.8.8.8/"),
    *("http://ok.example#@127.0.0.1:{port}/", "http://127.0.0.1:{port}#@8.8.8.8/"),
    *("http://127.0.0.1:{port}?@8.8.8.8/", "http://127.0.0.1:{port}/@8.8.8.8"),
    *("http://ok.example%23@127.0.0.1:{port}/", "http://8.8.8.8%2f@127.0.0.1:{port}/"),
    *("http://8.8.8.8%5c@127.0.0.1:{port}/", "http://127.0.0.1%2f.ok.example/"),
    *("http://8.8.8.8\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@8.8.8.8/"),
    *("http:\\\\127.0.0.1:{port}\\", "http:/\\127.0.0.1:{port}/", "http://\\127.0.0.1:{port}/"),
    *("http://8.8.8.8\\127.0.0.1/", "http://8.8.8.8/\\..\\", "\\\\127.0.0.1\\share"),
    *("http://127.0.0.1:{port}\r\nHost: 8.8.8.8/", "http://8.8.8.8/\r\nx: y", "http://8.8.8.8\n"),
    *("http://8.8.8.8/\tx", "http://127.0.0.1\t:{port}/", "http://8.8.8.8/\x00", "\x00http://a/"),
    *("http://127.0.0.1\x00.ok.example/", "ht\ntp://127.0.0.1:{port}/", " http://127.0.0.1/"),
    *("http:127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/"),
    *("http:////127.0.0.1:{port}/", "//127.0.0.1:{port}/", "///127.0.0.1:{port}", "127.0.0.1"),
    *(
        "http://",
        "http:",
        "https://",
        "http://?",
        "http://#",
        "http:///x",
        "http://@/",
        "http://:80",
    ),
    *("", "/", "image.png", "?", "#", "http", "://127.0.0.1:{port}", ":", "a b"),
    *("http://[::1", "http://::1:{port}/", "http://[::1]]:{port}/", "http://[[::1]]:{port}/"),
    *("http://[127.0.0.1]:{port}/", "http://[::1]x:{port}/", "http://[::1]@8.8.8.8:x/"),
    *("http://[8.8.8.8]/", "http://[::ffff:127.0.0.1:{port}]/", "http://[]/", "http://[:]/"),
    *("http://127.0.0.1:{port}:80/", "http://8.8.8.8:80:{port}/", "http://8.8.8.8:0/"),
    *("http://8.8.8.8:-1/", "http://8.8.8.8:65536/", "http://8.8.8.8:99999999999/"),
    *("http://8.8.8.8:port/", "http://8.8.8.8:0x50/", "http://8.8.8.8:80@127.0.0.1/"),
    *("http://127.0.0.1,8.8.8.8/", "http://127.0.0.1;8.8.8.8/", "http://8.8.8.8 .evil/"),
    *("http://8.8.8.8&@127.0.0.1:{port}#@ok.example/", "http://127.1.1.1:{port}\\@127.2.2.2:80/"),
    *("http://-.-@localhost:{port}/", "http://localhost%00.ok.example/", "http://*/", "http://~/"),
    *("http://0://8.8.8.8:80;http://8.8.8.8:80/", "http://\ud800/", "http://8.8.8.8/\ud800"),
    "http://8.8.8.8/" + "a" * 2100,
    "http://8.8.8.8/" + "a" * 70_000,
)

SCHEMES = (
    *("file:///etc/passwd", "file://127.0.0.1/etc/passwd", "file:/etc/passwd", "FILE:///etc/hosts"),
    *("ftp://127.0.0.1:{port}/", "ftps://127.0.0.1:{port}/", "sftp://127.0.0.1:{port}/"),
    *("gopher://127.0.0.1:{port}/_x", "dict://127.0.0.1:{port}/x", "ldap://127.0.0.1:{port}/"),
    *("tftp://127.0.0.1:{port}/", "ws://127.0.0.1:{port}/", "wss://127.0.0.1:{port}/"),
    *("unix:///run/docker.sock", "http+unix://%2frun%2fdocker.sock/x", "jar:http://127.0.0.1!/"),
    *("javascript:alert(1)", "about:blank", "blob:http://127.0.0.1/x", "netdoc:///etc/passwd"),
    *("view-source:http://127.0.0.1/", "s3://bucket/key", "gs://bucket/key", "smb://127.0.0.1/x"),
    *("ssh://127.0.0.1:{port}", "telnet://127.0.0.1:{port}", "httpx://127.0.0.1:{port}/"),
    *("h\u200bttp://127.0.0.1/", "https+http://127.0.0.1/", "mailto:a@127.0.0.1", "url:http://0/"),
)

BAD_PORTS = (1, 21, 22, 23, 25, 53, 110, 111, 135, 143, 389, 445, 465, 514, 587, 993, 995, 1023)
BAD_PORTS_ABOVE = (2049, 5060, 6000, 6667, 10080)
"""Ports of public addresses that are other services'."""


def host_of(address: str) -> str:
    """Return an address as the host of a URL."""
    return f"[{address}]" if ":" in address else address


def blocked_urls(port: int) -> list[str]:
    """Return every URL of the corpus that must not be reached; those that can lead to `port`."""
    hosts = [*map(host_of, PRIVATE_IPV4 + PRIVATE_IPV6), *NAMES, *SPELLINGS]
    return [
        *(f"http://{host}:{port}/" for host in hosts),
        *(f"https://{host}/" for host in (*NAMES, "127.0.0.1", "[::1]", "169.254.169.254")),
        *(url.replace("{port}", str(port)) for url in (*CONFUSIONS, *SCHEMES)),
        *(f"http://8.8.8.8:{bad}/" for bad in (*BAD_PORTS, *BAD_PORTS_ABOVE)),
    ]


def fake_getaddrinfo(names: Mapping[str, Sequence[str]], asked: list[str]) -> Callable[..., Any]:
    """Make a `socket.getaddrinfo` that knows these names, and reads numbers as the real one does.

    It notes the names that it was asked for; one without an address is unknown. Nobody else is
    asked.
    """
    real = socket.getaddrinfo

    def fake(host: bytes, *arguments: Any, **options: Any) -> Any:
        name = host.decode()
        if name not in names:
            return real(host, *arguments, **{**options, "flags": socket.AI_NUMERICHOST})
        asked.append(name)
        if not names[name]:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [entry for address in names[name] for entry in real(address, None)]

    return fake


class Recorder(httpcore2.AnyIOBackend):
    """The real network, which notes each connection; those that would leave this machine fail."""

    def __init__(self) -> None:
        self.connected: list[str] = []

    async def connect_tcp(self, host: str, *arguments: Any) -> httpcore2.AsyncNetworkStream:
        """Note the address, and connect if it is this machine."""
        self.connected.append(host)
        if not ipaddress.ip_address(host).is_loopback:
            raise httpcore2.ConnectError("the tests have no internet")
        return await super().connect_tcp(host, *arguments)


class Traps:
    """Listens on some ports, on every address of this machine, and counts who connects."""

    def __init__(self, count: int = 3) -> None:
        self._count = count
        self._servers: list[asyncio.Server] = []
        self.ports: list[int] = []
        self.connections = 0

    async def __aenter__(self) -> Self:
        for _ in range(self._count):
            first = await asyncio.start_server(self._connected, EVERY_INTERFACE, 0)
            port = int(first.sockets[0].getsockname()[1])
            self._servers.append(first)
            with contextlib.suppress(OSError):  # a machine without IPv6
                self._servers.append(await asyncio.start_server(self._connected, "::", port))
            self.ports.append(port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.close()

    def _connected(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


def addresses(texts: Iterable[str]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Parse addresses."""
    return [ipaddress.ip_address(text) for text in texts]
