"""The proxy on real sockets: fal's names get TLS on the same connection, all else nothing."""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from server.certs import ensure_certificates
from server.connect import HEAD_BYTES, lead_to_us
from server.hosts import FAL_HOSTS

pytestmark = pytest.mark.anyio

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
NEVER = 3600.0


class Echo(asyncio.Protocol):
    """Stands for the HTTPS server: sends back what it gets, and knows who is there."""

    def __init__(self, guests: list["Echo"]) -> None:
        self._guests = guests
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the caller and its address, as per-address limits need it."""
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_extra_info("sslcontext")
        self.transport = transport
        self.address = transport.get_extra_info("peername")
        self._guests.append(self)

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        """Note the end."""
        self.gone.set()


@dataclass
class Proxy:
    """A running proxy: its address, what clients trust, and who was served."""

    address: tuple[str, int]
    tls: ssl.SSLContext
    guests: list[Echo]
    task: asyncio.Task[None]


@contextlib.asynccontextmanager
async def run_proxy(
    folder: Path,
    head_seconds: float = NEVER,
    host: str = "127.0.0.1",
    listener: Callable[..., socket.socket] = socket.socket,
) -> AsyncIterator[Proxy]:
    """Run a proxy before an echo server; leaves nothing open."""
    files = ensure_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate_path, files.key_path)
    guests: list[Echo] = []
    loop = asyncio.get_running_loop()

    async def take_over(connection: socket.socket) -> None:
        await loop.connect_accepted_socket(lambda: Echo(guests), connection, ssl=context)

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        bound.bind((host, 0))
        bound.listen()
        task = asyncio.create_task(lead_to_us(bound, take_over, head_seconds))
        trusting = ssl.create_default_context(cafile=files.ca_path)
        try:
            yield Proxy(bound.getsockname()[:2], trusting, guests, task)
        finally:
            task.cancel()
            await asyncio.wait([task])
            for guest in guests:
                guest.transport.abort()
                await guest.gone.wait()


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    """Return a proxy that has all the patience in the world."""
    async with run_proxy(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def call(
    proxy: Proxy, request: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection and send the request; leaves nothing open."""
    reader, writer = await asyncio.open_connection(*proxy.address)
    try:
        writer.write(request)
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def connect_to(target: str, *headers: str) -> bytes:
    """Write a CONNECT request."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *headers, "", ""]
    return "\r\n".join(lines).encode()


@contextlib.asynccontextmanager
async def begin_tls(
    proxy: Proxy, request: bytes, name: str = "fal.run"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the request, hear that it worked, do the handshake, and hear the server itself."""
    async with call(proxy, request) as (reader, writer):
        assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
        await writer.start_tls(proxy.tls, server_hostname=name)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        yield reader, writer


@pytest.mark.parametrize("name", FAL_HOSTS)
async def test_every_name_of_fal_leads_to_the_tls_server(proxy: Proxy, name: str) -> None:
    """On the caller's own connection, so that the server sees who it is."""
    async with begin_tls(proxy, connect_to(f"{name}:443"), name) as (_, writer):
        assert [guest.address for guest in proxy.guests] == [writer.get_extra_info("sockname")]


@pytest.mark.parametrize(
    "request_",
    [
        connect_to("QUEUE.Fal.Run:443"),
        connect_to("queue.fal.run.:443"),
        connect_to("queue.fal.run:443", "Proxy-Authorization: Basic eDp5"),
        b"CONNECT queue.fal.run:443 HTTP/1.0\r\n\r\n",
    ],
)
async def test_spellings_of_a_name(proxy: Proxy, request_: bytes) -> None:
    """Case and the last dot do not matter, nor what a client sends beside the target."""
    async with begin_tls(proxy, request_, "queue.fal.run"):
        assert len(proxy.guests) == 1


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_tls_may_follow_at_once(proxy: Proxy, size: int) -> None:
    """What comes behind the request belongs to TLS, however the bytes were cut on their way."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = proxy.tls.wrap_bio(incoming, outgoing, server_hostname="fal.run")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    sent = connect_to("fal.run:443") + outgoing.read()
    async with call(proxy, b"") as (reader, writer):
        for start in range(0, len(sent), size):
            writer.write(sent[start : start + size])
            await writer.drain()
        assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
        while tls.version() is None:
            incoming.write(await reader.read(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
        writer.write(outgoing.read())
        assert tls.version() == "TLSv1.3"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        *(
            (connect_to(target), b"403 Forbidden")
            for target in (
                *("example.com:443", "fal.run.example.com:443", "notfal.run:443", "fal.ai:443"),
                *("fal.run:80", "fal.run:8443", "fal.run:0443", "fal.run:", "fal.run", ":443"),
                *("localhost:443", "127.0.0.1:443", "[::1]:443", "169.254.169.254:443"),
                *("fal.run@127.0.0.1:443", "127.0.0.1#fal.run:443", "fal.run..:443"),
                *("https://fal.run:443", "fal.run:443:443", "fal.run%00:443", "fal.run:+443"),
            )
        ),
        (b"GET / HTTP/1.1\r\nHost: box\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET http://fal.run/ HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"connect fal.run:443 HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"POST http://fal.run/ HTTP/1.1\r\n\r\n" + b"x" * 65536, b"405 Method Not Allowed"),
        (b"CONNECT fal.run:443\r\n\r\n", b"400 Bad Request"),
        (b"CONNECT  fal.run:443 HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"CONNECT fal.run:443 HTTP/2.0\r\n\r\n", b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
        (connect_to("fal.run:443", "X: " + "x" * HEAD_BYTES), b"431 Request Header Fields"),
        (b"x" * (HEAD_BYTES + 1), b"431 Request Header Fields"),
    ],
)
async def test_all_else_is_refused(proxy: Proxy, request_: bytes, status: bytes) -> None:
    """With a line that says what this port is for, and without a connection to anywhere."""
    async with call(proxy, request_) as (reader, _):
        head, _, text = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert (b"allow: CONNECT" in head) is status.startswith(b"405")
    assert b"nothing else" in text
    assert f"content-length: {len(text)}".encode() in head
    assert proxy.guests == []


async def test_a_caller_who_dawdles_is_dropped(tmp_path: Path) -> None:
    """Half a request does not hold a connection for ever; the time is that of the other ports."""
    async with (
        run_proxy(tmp_path, head_seconds=0.05) as proxy,
        call(proxy, b"CONNECT fal.run:443 HT") as (reader, _),
    ):
        assert await reader.read() == b""


async def test_callers_who_leave_or_fail_harm_nobody(proxy: Proxy) -> None:
    """Neither a port scan, nor one who sends no TLS, ends the service for the others."""
    for sent in (b"", b"CONNECT fal.run:443", connect_to("fal.run:443")):
        async with call(proxy, sent):
            pass
    async with call(proxy, connect_to("fal.run:443") + b"no TLS at all\r\n\r\n") as (reader, _):
        assert (await reader.read()).startswith(ESTABLISHED)
    async with begin_tls(proxy, connect_to("fal.run:443")):
        assert len(proxy.guests) == 1


class FullHouse(socket.socket):
    """A listening socket that refuses its first callers, as the system does when it has no room."""

    refusals: ClassVar = [errno.EMFILE, errno.ECONNABORTED]

    def accept(self) -> tuple[socket.socket, object]:
        """Refuse, then accept."""
        if self.refusals:
            raise OSError(self.refusals.pop(0), "refused")
        return super().accept()


async def test_no_room_for_a_moment_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes then is served when there is room again."""
    monkeypatch.setattr("server.connect.ACCEPT_RETRY_SECONDS", 0)
    async with (
        run_proxy(tmp_path, listener=FullHouse) as proxy,
        begin_tls(proxy, connect_to("fal.run:443")),
    ):
        assert FullHouse.refusals == []


async def test_the_end_drops_who_is_half_through(proxy: Proxy) -> None:
    """And keeps who was handed over: those belong to the server."""
    request = connect_to("fal.run:443")
    async with begin_tls(proxy, request) as (reader, writer), call(proxy, request) as (late, _):
        assert await late.readuntil(b"\r\n\r\n") == ESTABLISHED
        proxy.task.cancel()
        with contextlib.suppress(ConnectionResetError):
            assert await late.read() == b""
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"


async def test_it_listens_on_ipv6(tmp_path: Path) -> None:
    """As the other ports do when the address to listen on is one."""
    async with (
        run_proxy(tmp_path, host="::1") as proxy,
        begin_tls(proxy, connect_to("fal.run:443")),
    ):
        assert proxy.guests[0].address[0] == "::1"
