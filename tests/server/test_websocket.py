"""Websockets that are slow, endless, silent or broken: each has its time, and none is forgotten."""

import asyncio
import contextlib
import gc
import logging
import socket
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.websockets import WebSocket
from uvicorn.server import ServerState

from server import websocket
from server.protocol import PIECE_BYTES, PatientProtocol
from server.routes.socket import Socket
from server.websocket import PatientWebSocket
from tests.server.raw_http import LONG_SECONDS, WAIT_SECONDS, Box, Caller

pytestmark = pytest.mark.anyio

SHORT_SECONDS = 0.2
HEAD = (
    b"GET /a HTTP/1.1\r\nHost: box\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)
HANDSHAKE = HEAD + b"\r\n"
PLAIN = b"GET /plain HTTP/1.1\r\nHost: box\r\n\r\n"
CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FINAL = 128
MANY_BYTES = 20_000_000


def frame(kind: int, payload: bytes, *, announced: int | None = None, final: int = FINAL) -> bytes:
    """Write a whole frame as clients do; with `announced` it says that it is so long."""
    length = len(payload) if announced is None else announced
    return bytes((final | kind, 128 | 127)) + length.to_bytes(8, "big") + bytes(4) + payload


class SocketBox(Box):
    """A server whose websockets go to `talk`, which tells what the app hears in `heard`."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: list[PatientWebSocket] = []
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.kind: dict[str, Any] = {"body_seconds": LONG_SECONDS}
        self.to_send = 0

        def made(protocol: Any, *arguments: Any, **named: Any) -> None:
            PatientWebSocket.__init__(protocol, *arguments, **named)
            self.sockets.append(protocol)

        def lost(protocol: Any, error: Exception | None) -> None:
            PatientWebSocket.connection_lost(protocol, error)
            self.lost.set()

        self.kind |= {"__init__": made, "connection_lost": lost}
        self.options = {"ws_per_message_deflate": False, "ws_ping_interval": None}

    def make_config(self) -> Any:
        """Return uvicorn's settings, with websockets."""
        self.options["ws"] = type("TestWebSocket", (PatientWebSocket,), self.kind)
        return super().make_config()

    async def read_and_answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Talk on a websocket; answer all else as ever."""
        if scope["type"] != "websocket":
            await super().read_and_answer(scope, receive, send)
            return
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"] == "/refused":
            await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"no"})
            return
        await send({"type": "websocket.accept"})
        if self.to_send:
            await send({"type": "websocket.send", "bytes": bytes(self.to_send)})
        while scope["path"] != "/left":
            event = await receive()
            await self.heard.put(event)
            if event["type"] == "websocket.disconnect":
                return

    async def hear(self) -> Any:
        """Return what the app heard next."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.heard.get()


@pytest.fixture
async def box() -> AsyncIterator[SocketBox]:
    """Return a server that is not started yet."""
    found = SocketBox()
    yield found
    await found.stop()


async def open_socket(box: SocketBox, head: bytes = HANDSHAKE, receive_bytes: int = 0) -> Caller:
    """Connect and shake hands."""
    caller = await box.connect(receive_bytes)
    caller.send(head)
    async with asyncio.timeout(WAIT_SECONDS):
        assert (await caller.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return caller


def close_code(read: bytes) -> int:
    """Return the code of the close frame that the bytes end with."""
    at = read.rindex(bytes((128 | CLOSE,)))
    return int.from_bytes(read[at + 2 : at + 4], "big")


async def test_a_connection_goes_over_after_an_answer(box: SocketBox) -> None:
    """Requests may come before on the same one; their time limits end with them."""
    await box.start(header_seconds=SHORT_SECONDS, keep_alive=SHORT_SECONDS)
    caller = await box.connect()
    caller.send(PLAIN)
    assert await caller.read_answer() == (200, b"done")
    caller.send(HANDSHAKE)
    await caller.reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(2 * SHORT_SECONDS)
    caller.send(frame(TEXT, b"hello"))
    assert (await box.hear())["text"] == "hello"


async def test_a_transport_may_come_after_its_first_bytes(box: SocketBox) -> None:
    """As after `start_tls`; what comes behind the handshake is for the websocket, then too."""
    mine, theirs = socket.socketpair()
    for end in (mine, theirs):
        end.setblocking(False)
    loop = asyncio.get_running_loop()
    late: PatientProtocol = PatientProtocol(box.make_config(), ServerState(), {}, loop)
    late.data_received(HANDSHAKE)
    late.data_received(frame(TEXT, b"hello"))
    reader, writer = await asyncio.open_connection(sock=mine)
    await loop.connect_accepted_socket(lambda: late, theirs)
    assert (await box.hear())["text"] == "hello"
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    writer.close()
    assert (await box.hear())["type"] == "websocket.disconnect"


@pytest.mark.parametrize(
    "sent",
    [
        HANDSHAKE + PLAIN,
        HEAD + b"Content-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HANDSHAKE.replace(b"GET", b"POST"),
        HANDSHAKE.replace(b": websocket", b": h2c"),
        HANDSHAKE.replace(b"Connection: Upgrade\r\n", b""),
    ],
    ids=["early request", "body", "chunks", "post", "h2c", "no offer"],
)
async def test_what_is_no_clean_beginning_stays_http(box: SocketBox, sent: bytes) -> None:
    """No byte of it is ever taken for a message, nor a message for a request."""
    await box.start()
    caller = await box.connect()
    caller.send(sent)
    assert await caller.read_answer() == (200, b"done")
    assert box.seen[0][1] == "/a"
    assert box.sockets == []


async def test_a_message_before_the_answer_is_refused(box: SocketBox) -> None:
    """Nobody may send one, and as HTTP it makes no sense."""
    await box.start()
    caller = await box.connect()
    caller.send(HANDSHAKE + frame(TEXT, b"hello"))
    assert (await caller.is_hung_up_on()).startswith(b"HTTP/1.1 400 ")
    assert box.sockets == []


async def test_it_does_not_cut_into_an_answer_under_way(box: SocketBox) -> None:
    """A pipelined handshake waits its turn as a request, since two would write at a time."""
    await box.start()
    box.app = box.answer_later
    caller = await box.connect()
    caller.send(PLAIN)
    caller.send(HANDSHAKE)
    await asyncio.sleep(SHORT_SECONDS)
    assert box.sockets == []
    box.released.set()
    assert [await caller.read_answer() for _ in range(2)] == [(200, b"done")] * 2
    assert [path for _, path, _ in box.seen] == ["/plain", "/a"]


async def test_a_refusal_is_an_answer_and_no_mistake(
    box: SocketBox, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes whole, closes the connection, and nothing is in the log."""
    await box.start()
    caller = await box.connect()
    caller.send(HANDSHAKE.replace(b"/a", b"/refused"))
    answer = await caller.is_hung_up_on()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.endswith(b"no")
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_head_too_long_for_it_is_answered(box: SocketBox) -> None:
    """HTTP takes longer lines than the parser of websockets does: who sends one hears of it."""
    await box.start()
    caller = await box.connect()
    caller.send(HEAD + b"A: " + b"a" * 10_000 + b"\r\n\r\n")
    assert (await caller.is_hung_up_on()).startswith(b"HTTP/1.1 431 ")


async def test_a_dripping_message_is_cut(box: SocketBox) -> None:
    """However often a little of it comes."""
    box.kind["body_seconds"] = SHORT_SECONDS
    await box.start()
    caller = await open_socket(box)
    caller.send(frame(BINARY, b"", announced=1000))

    async def drip() -> None:
        while True:
            caller.send(b"a")
            await asyncio.sleep(SHORT_SECONDS / 10)

    dripping = asyncio.create_task(drip())
    assert close_code(await caller.is_hung_up_on()) == websocket.TOO_SLOW
    dripping.cancel()
    assert (await box.hear())["type"] == "websocket.disconnect"


async def test_a_steady_message_lives_and_silence_between_them_too(box: SocketBox) -> None:
    """Every 64 KiB earn the full time again; between messages none is due."""
    box.kind["body_seconds"] = 1.0
    box.options["ws_max_size"] = PIECE_BYTES * 8
    await box.start()
    caller = await open_socket(box)
    caller.send(frame(BINARY, b"", announced=PIECE_BYTES * 4))
    for _ in range(16):
        caller.send(bytes(PIECE_BYTES // 4))
        await asyncio.sleep(0.1)
    assert len((await box.hear())["bytes"]) == PIECE_BYTES * 4
    await asyncio.sleep(1.2)
    caller.send(frame(TEXT, b"still here"))
    assert (await box.hear())["text"] == "still here"


async def test_a_message_above_the_limit_ends_it(box: SocketBox) -> None:
    """As soon as it says its length."""
    box.options["ws_max_size"] = 1000
    await box.start()
    caller = await open_socket(box)
    caller.send(frame(BINARY, b"", announced=1001))
    assert close_code(await caller.is_hung_up_on()) == 1009
    assert (await box.hear())["code"] == 1009


@pytest.mark.parametrize("piece", [b"", b"ab"])
async def test_a_message_in_too_many_pieces_ends_it(
    box: SocketBox, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as may be are one message, with one more the connection ends."""
    monkeypatch.setattr(websocket, "MAX_FRAMES", 1000)
    await box.start()
    caller = await open_socket(box)
    begin = frame(BINARY, piece, final=0) + frame(CONTINUED, piece, final=0) * 999
    caller.send(begin)
    caller.send(frame(CONTINUED, piece))
    assert (await box.hear())["bytes"] == piece * 1001
    caller.send(begin + frame(CONTINUED, piece, final=0))
    assert close_code(await caller.is_hung_up_on()) == websocket.TOO_MANY
    assert (await box.hear())["code"] == websocket.TOO_MANY


async def test_a_text_that_is_none_ends_it_without_a_word_in_the_log(
    box: SocketBox, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the peer's fault, and what comes behind it is not read."""
    await box.start()
    caller = await open_socket(box)
    caller.send(frame(TEXT, b"L\xc3", final=0) + frame(CONTINUED, b"\xb6we"))
    assert (await box.hear())["text"] == "L\u00f6we"
    caller.send(frame(TEXT, b"L\xf6we") + frame(TEXT, b"hello"))
    assert close_code(await caller.is_hung_up_on()) == websocket.NO_TEXT
    assert (await box.hear())["code"] == websocket.NO_TEXT
    assert box.heard.empty()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_peer_that_pings_and_reads_nothing_is_cut(box: SocketBox) -> None:
    """The answers do not pile up here."""
    await box.start()
    caller = await open_socket(box, receive_bytes=4096)
    pings = frame(PING, bytes(125)) * 1000
    with contextlib.suppress(ConnectionError):
        for _ in range(200):
            caller.send(pings)
            await caller.writer.drain()
    async with asyncio.timeout(WAIT_SECONDS):
        await box.lost.wait()


async def test_a_peer_that_reads_may_ping(box: SocketBox) -> None:
    """While it takes a long answer, and for ever once it has that."""
    box.to_send = MANY_BYTES
    await box.start()
    caller = await open_socket(box)
    ping, pong = frame(PING, bytes(100)), bytes((FINAL | PONG, 100)) + bytes(100)
    caller.send(ping * 100)
    async with asyncio.timeout(WAIT_SECONDS):
        await caller.reader.readexactly(len(frame(BINARY, b"")) - 4)
        for _ in range(MANY_BYTES // 10_000):
            await caller.reader.readexactly(10_000)
        for _ in range(20):
            assert await caller.reader.readexactly(100 * len(pong)) == pong * 100
            caller.send(ping * 100)


@pytest.mark.parametrize("path", [b"/a", b"/left"])
async def test_a_reader_that_takes_nothing_is_cut(
    box: SocketBox, path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the app is done with it; without a ping that would find out."""
    monkeypatch.setattr(websocket, "STALL_SECONDS", SHORT_SECONDS)
    box.to_send = MANY_BYTES
    await box.start()
    await open_socket(box, HANDSHAKE.replace(b"/a", path), receive_bytes=4096)
    async with asyncio.timeout(WAIT_SECONDS):
        await box.lost.wait()


async def test_a_route_sends_until_its_reader_is_cut(
    box: SocketBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits as long as the reader takes something, and then hears that nobody is there."""
    monkeypatch.setattr(websocket, "STALL_SECONDS", SHORT_SECONDS)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        line = WebSocket(scope, receive, send)
        async with Socket.accept(line, most_waiting=1, most_bytes=1, may_drop=True) as accepted:
            await accepted.send(bytes(MANY_BYTES))
            await accepted.send("the end")
            await box.heard.put(await accepted.next(LONG_SECONDS))

    box.app = answer
    await box.start()
    await open_socket(box, receive_bytes=4096)
    assert await box.hear() is None


async def test_a_slow_reader_is_not_asked_for_pongs_it_cannot_give(
    box: SocketBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ping is behind what it has not read yet; a piece within the time is enough."""
    monkeypatch.setattr(websocket, "STALL_SECONDS", 0.5)
    box.options |= {"ws_ping_interval": 0.05, "ws_ping_timeout": 0.05}
    box.to_send = MANY_BYTES
    await box.start()
    caller = await open_socket(box, receive_bytes=65536)
    await asyncio.sleep(SHORT_SECONDS)
    taken = 0
    async with asyncio.timeout(WAIT_SECONDS):
        while taken < MANY_BYTES:
            piece = await caller.reader.read(400_000)
            assert piece
            taken += len(piece)
            await asyncio.sleep(0.002)
            assert box.sockets[0].transport.count_unsent() == 0 or not box.sockets[0].close_sent


async def test_a_peer_that_answers_no_ping_is_gone(box: SocketBox) -> None:
    """The app hears of it, and nothing waits for a goodbye."""
    box.options |= {"ws_ping_interval": 0.05, "ws_ping_timeout": 0.05}
    await box.start()
    caller = await open_socket(box)
    assert (await box.hear())["type"] == "websocket.disconnect"
    assert close_code(await caller.is_hung_up_on()) == 1011


async def test_a_stop_is_told_once(box: SocketBox) -> None:
    """With the code that says to come back, and to the app as a disconnect."""
    await box.start()
    caller = await open_socket(box)
    for _ in range(2):
        box.sockets[0].shutdown()
    assert (await box.hear())["code"] == websocket.RESTARTING
    read = await caller.is_hung_up_on()
    assert (close_code(read), read.count(b"The server is stopping")) == (websocket.RESTARTING, 1)


async def test_a_closed_connection_leaves_nothing(box: SocketBox) -> None:
    """Its timers go with it, long before they would end."""
    await box.start()
    caller = await open_socket(box)
    caller.send(frame(BINARY, b"", announced=1000))
    await asyncio.sleep(0)
    gone = weakref.ref(box.sockets.pop())
    caller.writer.close()
    assert (await box.hear())["type"] == "websocket.disconnect"
    async with asyncio.timeout(WAIT_SECONDS):
        while gone():
            await asyncio.sleep(0.01)
            gc.collect()
