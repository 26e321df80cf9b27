"""A websocket as routes use it: who may wait, who is dropped, who is given up."""

import asyncio
from typing import Any

import pytest
from starlette.websockets import WebSocket

from server.errors import RequestError
from server.routes import socket
from server.routes.socket import NORMAL, OUR_FAULT, TOO_MUCH, OpenSockets, Socket
from tests.server.stubs import wait_an_hour

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20


class Wire:
    """The server's end of a connection: what came in is put, what goes out is kept."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.idle = asyncio.Event()
        self.incoming.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}
        self.websocket = WebSocket(scope, self._receive, self._send)

    async def _receive(self) -> Any:
        if self.incoming.empty():
            self.idle.set()
        return await self.incoming.get()

    async def _send(self, message: Any) -> None:
        await self.takes.wait()
        self.sent.append(message)

    def put(self, *messages: str) -> None:
        """Let messages come in."""
        self.idle.clear()
        for text in messages:
            self.incoming.put_nowait({"type": "websocket.receive", "text": text})

    def leave(self) -> None:
        """Let the peer go."""
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def read(self) -> None:
        """Wait until all that came in was read."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self.idle.wait()

    def codes(self) -> list[int]:
        """Return with what codes it was closed."""
        return [item["code"] for item in self.sent if item["type"] == "websocket.close"]


@pytest.fixture
def wire() -> Wire:
    """Return a connection."""
    return Wire()


def accept(wire: Wire, most_waiting: int = 3, most_bytes: int = 100, *, drop: bool = True) -> Any:
    """Accept it."""
    return Socket.accept(
        wire.websocket, most_waiting=most_waiting, most_bytes=most_bytes, may_drop=drop
    )


async def test_the_oldest_are_dropped(wire: Wire) -> None:
    """By number and by size; the newest always waits, however long it is."""
    async with accept(wire) as line:
        wire.put("a", "b", "c", "d", "e")
        await wire.read()
        assert [await line.next(1) for _ in range(3)] == ["c", "d", "e"]
        wire.put("x" * 60, "y" * 50, "z" * 50)
        await wire.read()
        assert [await line.next(1) for _ in range(2)] == ["y" * 50, "z" * 50]
        wire.put("a", "z" * 500)
        await wire.read()
        assert await line.next(1) == "z" * 500
        wire.put("last")
        assert await line.next(1) == "last"


async def test_where_none_may_be_dropped_the_connection_ends(wire: Wire) -> None:
    """And who waits for the next message hears that nobody is there."""
    async with accept(wire, 1, drop=False) as line:
        wire.put("a", "b")
        assert await line.next(1) in ("a", None)
        assert await line.next(1) is None
    assert wire.codes() == [TOO_MUCH]


async def test_who_leaves_is_missed_at_once(wire: Wire) -> None:
    """By who waits for a message and by who waits for anything else; what waited goes."""
    async with accept(wire) as line:
        coming = asyncio.create_task(asyncio.Event().wait())
        wire.put("a")
        wire.leave()
        assert await line.unless_gone(coming) is None
        assert await line.next(1) is None
        coming.cancel()


async def test_a_reader_that_takes_its_time_gets_everything(wire: Wire) -> None:
    """The answer an hour later, and the farewell behind it; `test_websocket` has who takes none."""
    async with accept(wire) as line:
        for last in (line.send("an answer"), line.close(NORMAL)):
            wire.takes.clear()
            sending = asyncio.create_task(last)
            await wait_an_hour()
            wire.takes.set()
            await sending
    assert [event.get("text") or event["code"] for event in wire.sent[1:]] == ["an answer", NORMAL]


async def test_a_fault_of_ours_is_told_as_one(wire: Wire) -> None:
    """With the code for it, and no word of what it was."""
    with pytest.raises(ValueError, match="a secret"):
        async with accept(wire):
            raise ValueError("a secret")
    assert wire.codes() == [OUR_FAULT]
    assert "secret" not in str(wire.sent)


async def test_so_many_of_a_key_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that ends makes room for another."""
    monkeypatch.setattr(socket, "MAX_SOCKETS", 3)
    sockets = OpenSockets(most_per_key=2)
    with sockets.enter("ann"), sockets.enter("ann"):
        with pytest.raises(RequestError), sockets.enter("ann"):
            pass
        with sockets.enter("bob"), pytest.raises(RequestError), sockets.enter("eve"):
            pass
        with sockets.enter("eve"):
            pass
    with sockets.enter("ann"):
        pass
