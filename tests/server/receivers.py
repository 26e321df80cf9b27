"""Webhook receivers for tests: a scripted HTTP server, and fal's check of signatures.

The check is written from fal's documentation over PyNaCl and shares nothing with the server.
"""

import asyncio
import base64
import contextlib
import hashlib
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

WAIT_SECONDS = 30
DRIP_SECONDS = 0.2
TIMESTAMP_LEEWAY_SECONDS = 300

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came in; header names are in lower case."""

    target: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def request_id(self) -> str:
        """The id in the signed header."""
        return self.headers["x-fal-webhook-request-id"]


def status(code: int, *headers: str) -> Answer:
    """Make an answer with this status, further header lines, and a small body."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {code} Words", "content-length: 2", *headers, "", "ok"]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()

    return answer


async def silence(_writer: asyncio.StreamWriter) -> None:
    """Take the request and never answer."""
    await asyncio.Event().wait()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close the connection instead of answering."""
    writer.close()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Answer with headers that never end, a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\nx-drip: ")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


async def endless_body(writer: asyncio.StreamWriter) -> None:
    """Answer 200 with a body that never ends, as fast as it is taken."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


async def dripping_body(writer: asyncio.StreamWriter) -> None:
    """Answer 200 with a body that comes a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


class Receiver:
    """A server that answers its n-th request by the n-th answer, and later ones by the last.

    Use it as an async context manager: it listens on a free `port`. `connections` counts,
    `received` keeps what came.
    """

    def __init__(
        self,
        *answers: Answer,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._answers = answers or (status(200),)
        self._host = host
        self._tls = tls
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.connections = 0
        self.received: list[Received] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self._host, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def url(self, path: str = "/hook", host: str | None = None) -> str:
        """Return a URL of this server, under another name for its address if given."""
        return f"{'https' if self._tls else 'http'}://{host or self._host}:{self.port}{path}"

    async def wait(self, count: int) -> list[Received]:
        """Return what came once there are so many requests."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.received) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.received

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():  # a client may use a connection again
                self.received.append(await _read_request(reader))
                self._arrived.set()
                number = min(len(self.received), len(self._answers)) - 1
                await self._answers[number](writer)
        writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in head[1:] if line)
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(head[0].split(" ")[1], headers, body)


def is_from_fal(
    keys: Mapping[str, Any], headers: Mapping[str, str], body: bytes, now: float
) -> bool:
    """Check a webhook by the steps of fal's documentation, with the published key set.

    `headers` have names in lower case, `now` is the receiver's clock.
    """
    prefix = "x-fal-webhook-"
    try:
        values = [headers[prefix + name] for name in ("request-id", "user-id", "timestamp")]
        signature = bytes.fromhex(headers[prefix + "signature"])
        timestamp = int(values[2])
    except (KeyError, ValueError):
        return False
    if abs(now - timestamp) > TIMESTAMP_LEEWAY_SECONDS:
        return False
    message = "\n".join([*values, hashlib.sha256(body).hexdigest()]).encode("utf-8")
    for key in keys["keys"]:
        padded = key["x"] + "=" * (-len(key["x"]) % 4)
        try:
            VerifyKey(base64.urlsafe_b64decode(padded)).verify(message, signature)
        except (BadSignatureError, ValueError):
            continue
        return True
    return False
