"""A server of the real protocol class around a small app, and callers that send raw bytes."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from server.protocol import PIECE_BYTES, PatientProtocol

LONG_SECONDS = 60.0
WAIT_SECONDS = 20


class _Watched(PatientProtocol):
    """Tells the test when the connection is gone."""

    lost: asyncio.Event

    def connection_lost(self, exc: Exception | None) -> None:
        """Set the event."""
        super().connection_lost(exc)
        self.lost.set()


class Box:
    """A server of one protocol class; `app` may be replaced, `seen` lists its requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.released = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.lost = asyncio.Event()
        self.answer = b"done"
        self.options: dict[str, Any] = {"ws": "none"}
        self.protocols: list[PatientProtocol] = []
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.app: Callable[..., Awaitable[None]] = self.read_and_answer

    async def start(self, **limits: float) -> None:
        """Listen. Limits that are not given are long."""
        given = {"header_seconds": LONG_SECONDS, "body_seconds": LONG_SECONDS, **limits}
        keep_alive = given.pop("keep_alive", LONG_SECONDS)
        kind = type("TestProtocol", (_Watched,), {**given, "lost": self.lost})

        config = self.make_config()
        config.timeout_keep_alive = keep_alive  # type: ignore[assignment]
        state = ServerState()

        def make() -> PatientProtocol:
            made: PatientProtocol = kind(config=config, server_state=state, app_state={})
            self.protocols.append(made)
            return made

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(make, "127.0.0.1", 0)

    def make_config(self) -> uvicorn.Config:
        """Return uvicorn's settings for the app."""

        async def call(scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

        config = uvicorn.Config(call, log_config=None, lifespan="off", **self.options)
        config.load()
        return config

    async def connect(self, receive_bytes: int = 0) -> "Caller":
        """Open a connection."""
        assert self._server is not None
        address = self._server.sockets[0].getsockname()
        plain = socket.socket()
        if receive_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, address)
        reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
        self._writers.append(writer)
        return Caller(reader, writer)

    async def read_and_answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the whole body, then answer it."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.set()
                return
            body, more = body + message["body"], message["more_body"]
        self.seen.append((scope["method"], scope["path"], body))
        await self.send_answer(send)

    async def answer_later(self, scope: Any, receive: Any, send: Any) -> None:
        """Do not read the body, nor answer, before the test says so."""
        await self.released.wait()
        await self.read_and_answer(scope, receive, send)

    async def refuse_unread(self, _scope: Any, _receive: Any, send: Any) -> None:
        """Answer without reading the body."""
        await self.send_answer(send)

    async def send_answer(self, send: Any) -> None:
        """Send what `answer` holds."""
        length = str(len(self.answer)).encode()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
        )
        await send({"type": "http.response.body", "body": self.answer})

    async def stop(self) -> None:
        """Close everything."""
        for writer in self._writers:
            writer.close()
        if self._server:
            self._server.close()


class Caller:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        """Send these bytes, when the network takes them."""
        self.writer.write(data)

    async def read_answer(self) -> tuple[int, bytes]:
        """Return the status and the body of the next answer; 0 when there is none."""
        async with asyncio.timeout(WAIT_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return int(head.split()[1]), await self.reader.readexactly(length)

    async def is_hung_up_on(self) -> bytes:
        """Wait for the end of the connection, be it a reset, and return what came before."""
        came = b""
        async with asyncio.timeout(WAIT_SECONDS):
            with contextlib.suppress(ConnectionResetError):
                while piece := await self.reader.read(PIECE_BYTES):
                    came += piece
        return came
