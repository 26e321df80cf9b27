"""Slow, endless and broken HTTP: each connection has its time, and none is cut without cause."""

import asyncio
import gc
import socket
import ssl
import weakref
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator
from typing import Any

import pytest
from uvicorn.server import ServerState

from server import protocol
from server.protocol import HEAD_BYTES, MAX_PIPELINED, PatientProtocol
from tests.server.raw_http import WAIT_SECONDS, Box, Caller

pytestmark = pytest.mark.anyio

SHORT_SECONDS = 0.2
HEAD = b"POST /a HTTP/1.1\r\nHost: box\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    """Return a server that is not started yet."""
    found = Box()
    yield found
    await found.stop()


@pytest.mark.parametrize("sent", [b"\r\n", b"POST", HEAD, HEAD + b"Content-Length: 9"])
async def test_a_head_has_its_time(box: Box, sent: bytes) -> None:
    """From the first moment of the connection, however much of it is there: 408, and closed."""
    await box.start(header_seconds=SHORT_SECONDS)
    caller = await box.connect()
    caller.send(sent)
    answer = await caller.is_hung_up_on()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"x-fal-error-type: request_timeout\r\n" in answer
    assert box.seen == []


async def test_a_dripping_head_is_not_given_more_time(box: Box) -> None:
    """Each byte counts against the same limit."""
    await box.start(header_seconds=SHORT_SECONDS)
    caller = await box.connect()
    caller.send(HEAD + b"A: ")

    async def drip() -> None:
        while True:
            caller.send(b"a")
            await asyncio.sleep(SHORT_SECONDS / 10)

    dripping = asyncio.create_task(drip())
    assert (await caller.is_hung_up_on()).startswith(b"HTTP/1.1 408 ")
    dripping.cancel()


async def test_a_client_that_never_says_a_word_hears_none(box: Box) -> None:
    """A request on its way would be taken for answered by a 408 that crosses it."""
    await box.start(header_seconds=SHORT_SECONDS)
    caller = await box.connect()
    assert await caller.is_hung_up_on() == b""


async def test_a_second_head_has_its_time(box: Box) -> None:
    """It counts from its own first byte, on a connection that may stay idle for long."""
    await box.start(header_seconds=SHORT_SECONDS)
    caller = await box.connect()
    caller.send(WHOLE)
    assert await caller.read_answer() == (200, b"done")
    await asyncio.sleep(2 * SHORT_SECONDS)
    caller.send(b"G")
    assert (await caller.is_hung_up_on()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("drip", [b"", b"\r\n"])
async def test_an_idle_connection_is_closed_in_silence(box: Box, drip: bytes) -> None:
    """Blank lines between requests, which are allowed, do not keep it open."""
    await box.start(keep_alive=SHORT_SECONDS)
    caller = await box.connect()
    caller.send(WHOLE)
    assert await caller.read_answer() == (200, b"done")
    caller.send(drip)
    assert await caller.is_hung_up_on() == b""


async def test_a_dripping_body_is_cut(box: Box) -> None:
    """The reader in the app hears of it, and the client gets 408."""
    await box.start(body_seconds=SHORT_SECONDS)
    caller = await box.connect()
    caller.send(HEAD + b"Content-Length: 100000\r\n\r\n{")
    assert (await caller.is_hung_up_on()).startswith(b"HTTP/1.1 408 ")
    async with asyncio.timeout(WAIT_SECONDS):
        await box.disconnected.wait()


async def test_a_slow_but_steady_body_lives(box: Box) -> None:
    """Every 64 KiB earn the full time again."""
    await box.start(body_seconds=1.0)
    caller = await box.connect()
    piece = b"x" * (protocol.PIECE_BYTES // 4)
    caller.send(HEAD + b"Content-Length: %d\r\n\r\n" % (len(piece) * 16))
    for _ in range(16):
        caller.send(piece)
        await asyncio.sleep(0.1)
    assert await caller.read_answer() == (200, b"done")


@pytest.mark.parametrize("body", [b"{}", b"x" * 1_000_000])
async def test_a_silent_client_may_wait_for_its_answer(box: Box, body: bytes) -> None:
    """While the server works, or does not read, all limits stand still."""
    await box.start(
        header_seconds=SHORT_SECONDS, body_seconds=SHORT_SECONDS, keep_alive=SHORT_SECONDS
    )
    box.app = box.answer_later
    caller = await box.connect()
    caller.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await asyncio.sleep(4 * SHORT_SECONDS)
    box.released.set()
    assert await caller.read_answer() == (200, b"done")
    assert box.seen == [("POST", "/a", body)]


async def test_who_asks_first_waits_for_the_go_ahead(box: Box) -> None:
    """`Expect: 100-continue`: the body's time begins when the server wants it."""
    await box.start(body_seconds=SHORT_SECONDS)
    box.app = box.answer_later
    caller = await box.connect()
    caller.send(HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    await asyncio.sleep(3.8 * SHORT_SECONDS)
    box.released.set()
    async with asyncio.timeout(WAIT_SECONDS):
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await asyncio.sleep(0.6 * SHORT_SECONDS)  # what was left of a time begun earlier is over
    caller.send(b"{}")
    assert await caller.read_answer() == (200, b"done")


async def test_who_asks_first_and_is_refused_is_hung_up_on(box: Box) -> None:
    """Whether the body follows is not known, so nothing after it could be told from it."""
    await box.start()
    box.app = box.refuse_unread
    caller = await box.connect()
    caller.send(HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert (await caller.is_hung_up_on()).startswith(b"HTTP/1.1 200 ")


async def test_an_early_answer_is_not_lost_in_the_body_behind_it(box: Box) -> None:
    """The rest is read and dropped, and the connection serves the next request."""
    await box.start()
    box.app = box.refuse_unread
    caller = await box.connect()
    body = b"x" * 5_000_000
    caller.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + WHOLE)
    assert await caller.read_answer() == (200, b"done")
    assert await caller.read_answer() == (200, b"done")


async def test_the_rest_of_a_refused_body_has_its_time(box: Box) -> None:
    """After the answer, steadiness earns no more of it."""
    await box.start(body_seconds=SHORT_SECONDS)
    box.app = box.refuse_unread
    caller = await box.connect()
    caller.send(HEAD + b"Content-Length: 100000000\r\n\r\n")
    assert await caller.read_answer() == (200, b"done")
    assert await caller.is_hung_up_on() == b""


async def test_no_request_is_answered_twice(box: Box) -> None:
    """What breaks behind an early answer ends the connection, and is not told."""
    await box.start()
    box.app = box.refuse_unread
    caller = await box.connect()
    caller.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    assert await caller.read_answer() == (200, b"done")
    caller.send(b"no number\r\n")
    assert await caller.is_hung_up_on() == b""


async def test_a_reader_that_takes_nothing_is_given_up(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer does not stay in memory."""
    monkeypatch.setattr(protocol, "STALL_SECONDS", SHORT_SECONDS)
    await box.start()
    box.answer = b"x" * 20_000_000
    caller = await box.connect(receive_bytes=4096)
    caller.send(WHOLE)
    async with asyncio.timeout(WAIT_SECONDS):
        await box.lost.wait()
    assert len(await caller.is_hung_up_on()) < len(box.answer)


async def test_a_reader_that_takes_its_time_gets_everything(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece within the time is enough, and the keep-alive time waits for the last byte."""
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.5)
    await box.start(keep_alive=SHORT_SECONDS)
    box.answer = b"x" * 8_000_000
    caller = await box.connect(receive_bytes=65536)
    caller.send(WHOLE)
    taken = 0
    async with asyncio.timeout(WAIT_SECONDS):
        while taken < len(box.answer):
            taken += len(await caller.reader.read(400_000))
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "flood",
    [
        b"GET /" + b"a" * 2 * HEAD_BYTES,
        b"GET / HTTP/1.1\r\nA: " + b"a" * 8 * HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * HEAD_BYTES,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"a" * 8 * HEAD_BYTES,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0;" + b"a" * 8 * HEAD_BYTES,
        WHOLE.replace(b"POST", b"GET") * 50 * MAX_PIPELINED,
    ],
    ids=["url", "header", "headers", "trailer", "extension", "pipeline"],
)
async def test_what_has_no_end_is_cut(box: Box, flood: bytes) -> None:
    """Nothing that is not a body may grow in memory."""
    await box.start()
    box.app = box.answer_later
    caller = await box.connect()
    caller.send(flood)
    answer = await caller.is_hung_up_on()
    assert not answer or answer.split()[1] in (b"400", b"431")
    assert box.seen == []


async def test_a_transport_may_come_after_its_first_bytes(box: Box) -> None:
    """As after `start_tls`, which makes the connection while bytes arrive already."""
    mine, theirs = socket.socketpair()
    for end in (mine, theirs):
        end.setblocking(False)
    late: PatientProtocol = PatientProtocol(
        box.make_config(), ServerState(), {}, asyncio.get_running_loop()
    )
    late.data_received(WHOLE[:10])
    late.data_received(WHOLE[10:])
    reader, writer = await asyncio.open_connection(sock=mine)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: late, theirs)
    assert await Caller(reader, writer).read_answer() == (200, b"done")
    writer.close()
    await writer.wait_closed()
    late.transport.abort()
    await asyncio.sleep(0)  # lets the transport close its socket


async def test_a_tls_connection_may_be_closed_twice(box: Box) -> None:
    """A stop may close what was closing already: nobody is left to read."""
    loop = asyncio.get_running_loop()
    made: PatientProtocol = PatientProtocol(box.make_config(), ServerState(), {}, loop)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls: Any = SSLProtocol(loop, made, context, loop.create_future(), server_side=True)
    made.transport = tls._get_app_transport()
    for _ in range(2):
        made.shutdown()
    assert made.transport.is_closing()


async def test_a_closed_connection_leaves_nothing(box: Box) -> None:
    """Its timers go with it, long before they would end."""
    await box.start()
    caller = await box.connect()
    caller.send(WHOLE)
    await caller.read_answer()
    gone = weakref.ref(box.protocols.pop())
    caller.writer.close()
    async with asyncio.timeout(WAIT_SECONDS):
        await box.lost.wait()
    await asyncio.sleep(0)  # the loop drops its last reference to the transport
    gc.collect()
    assert gone() is None
