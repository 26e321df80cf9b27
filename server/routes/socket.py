"""A websocket as our routes use it: what came in and waits, what goes out, and how it ends."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from server.errors import RequestError
from server.routes.messages import Message

T = TypeVar("T")

MAX_SOCKETS = 1000
"""Most websockets at a time."""

NORMAL, TOO_MUCH, OUR_FAULT = 1000, 1008, 1011
"""Close codes of RFC 6455."""


class OpenSockets:
    """Counts the open websockets, of everybody and of each key."""

    def __init__(self, most_per_key: int) -> None:
        self._most_per_key = most_per_key
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def enter(self, owner: str) -> Iterator[None]:
        """Count one. Raises `RequestError` 429 when there are too many already."""
        if self._open.total() >= MAX_SOCKETS or self._open[owner] >= self._most_per_key:
            raise RequestError(429, "Too many websockets", headers={"retry-after": "10"})
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]


class Socket:
    """An accepted websocket that is read all the time, so that pings and the end are never missed.

    `most_waiting` messages, of `most_bytes` together, may wait for their turn. What comes beyond
    that takes the place of the oldest, or ends the connection where none may be dropped.
    """

    def __init__(
        self, websocket: WebSocket, *, most_waiting: int, most_bytes: int, may_drop: bool
    ) -> None:
        self._websocket = websocket
        self._most_waiting = most_waiting
        self._most_bytes = most_bytes
        self._may_drop = may_drop
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name="websocket")

    @classmethod
    @contextlib.asynccontextmanager
    async def accept(
        cls, websocket: WebSocket, *, most_waiting: int, most_bytes: int, may_drop: bool
    ) -> AsyncIterator["Socket"]:
        """Accept a websocket; it is closed in the end, also after a fault of ours."""
        await websocket.accept()
        socket = cls(websocket, most_waiting=most_waiting, most_bytes=most_bytes, may_drop=may_drop)
        try:
            yield socket
        except Exception:
            await socket.close(OUR_FAULT, "Internal Server Error")
            raise
        finally:
            socket._reading.cancel()
            await socket.close(NORMAL)

    async def next(self, idle_seconds: float) -> Message | None:
        """Return the message whose turn it is, None when the caller is gone.

        Raises `TimeoutError` when there is none in time.
        """
        async with asyncio.timeout(idle_seconds):
            while not (self._waiting or self._reading.done()):
                self._changed.clear()
                await self._changed.wait()
        if self._reading.done():
            return None
        message = self._waiting.popleft()
        self._waiting_bytes -= len(message)
        return message

    async def unless_gone(self, coming: "asyncio.Task[T]") -> T | None:
        """Return what comes, with its errors, or None when the caller is gone before that."""
        await asyncio.wait({coming, self._reading}, return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else None

    async def send(self, message: Message) -> None:
        """Send, however long it takes; `server.websocket` hangs up on who takes nothing."""
        try:
            if isinstance(message, str):
                await self._websocket.send_text(message)
            else:
                await self._websocket.send_bytes(message)
        except (WebSocketDisconnect, RuntimeError):
            self._reading.cancel()

    async def close(self, code: int, reason: str = "") -> None:
        """Close, unless that has happened; the peer learns the first code."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._websocket.close(code, reason)

    async def _read(self) -> None:
        try:
            while (event := await self._websocket.receive())["type"] == "websocket.receive":
                text = event.get("text")
                self._put(event["bytes"] if text is None else text)
                self._changed.set()
        except _FullError:
            await self.close(TOO_MUCH, "Too many requests wait on this connection")
        finally:
            self._waiting.clear()
            self._changed.set()

    def _put(self, message: Message) -> None:
        self._waiting.append(message)
        self._waiting_bytes += len(message)
        while len(self._waiting) > 1 and (
            len(self._waiting) > self._most_waiting or self._waiting_bytes > self._most_bytes
        ):
            if not self._may_drop:
                raise _FullError
            self._waiting_bytes -= len(self._waiting.popleft())


class _FullError(Exception):
    """More waits than may."""
