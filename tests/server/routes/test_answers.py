"""Bodies: what counts as JSON, what is too much of it, and how many may be told what happens."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from server import protocol
from server.errors import FalError, InputError, RequestError
from server.routes import answers
from server.routes.answers import LONG_BODY_BYTES, MAX_VALUES, EventStream, read_json
from tests.server.raw_http import WAIT_SECONDS, Box
from tests.server.stubs import wait_an_hour

pytestmark = pytest.mark.anyio

LIMIT_BYTES = 1_000_000


class Sender:
    """A request whose body comes in pieces; `taken` counts those that were read."""

    def __init__(self, pieces: Sequence[bytes], headers: dict[str, str] | None = None) -> None:
        self.taken = 0
        self._pieces = pieces
        given = [(key.encode(), value.encode()) for key, value in (headers or {}).items()]
        self.request = Request({"type": "http", "headers": given}, self._receive)

    async def _receive(self) -> Message:
        piece = self._pieces[self.taken]
        self.taken += 1
        more = self.taken < len(self._pieces)
        return {"type": "http.request", "body": piece, "more_body": more}

    async def read(self) -> Any:
        """Read the body as a route does."""
        return await read_json(self.request, LIMIT_BYTES)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "\u00e9"}'.encode("utf-16"), {"a": "\u00e9"}),
        ('{"a": "\u00e9"}'.encode("utf-32-be"), {"a": "\u00e9"}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
        (b'{"a": "\\u0000"}', {"a": "\0"}),
        (b" [1e999] \r\n", [float("inf")]),
        (b"[" * 100 + b"]" * 100, None),
    ],
)
async def test_what_is_json(body: bytes, value: Any) -> None:
    """The last of two equal keys counts, and UTF-16, UTF-32 and a byte order mark are read."""
    found = await Sender([body]).read()
    assert value is None or found == value


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{}{}", 422),
        (b'{"a": NaN}', 422),
        (b'{"a": 1,}', 422),
        (b'{"a": "\\x41"}', 422),
        (b'{"a": "\n"}', 422),
        (b'{"a": "\xff"}', 422),
        (b"{'a': 1}", 422),
        (b"[" * 101 + b"]" * 101, 400),
        (b"[" * 900_000, 400),
        (b"[" + b"9" * 5000 + b"]", 400),
        (b"[" + b"1," * (MAX_VALUES + 1) + b"1]", 400),
    ],
)
async def test_what_is_not(body: bytes, status: int) -> None:
    """Each is the sender's mistake, told as such."""
    with pytest.raises(FalError) as refused:
        await Sender([body]).read()
    assert refused.value.status == status
    json.dumps(refused.value.body, allow_nan=False)


async def test_a_long_body_is_read_beside_other_work() -> None:
    """It is the same value as a short one's, and the same errors."""
    text = "x" * LONG_BODY_BYTES
    assert await Sender([json.dumps(text).encode()]).read() == text
    with pytest.raises(InputError):
        await Sender([text.encode()]).read()


async def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    """The refusal comes before the first byte; a body that lies is refused where it ends."""
    announced = Sender([b"{}"], {"content-length": str(LIMIT_BYTES + 1)})
    with pytest.raises(RequestError) as refused:
        await announced.read()
    assert (refused.value.status, announced.taken) == (413, 0)
    silent = Sender([b" " * (LIMIT_BYTES // 2)] * 5)
    with pytest.raises(RequestError) as refused:
        await silent.read()
    assert (refused.value.status, silent.taken) == (413, 3)
    assert await Sender([b"{}"], {"content-length": str(LIMIT_BYTES)}).read() == {}


async def test_streams_are_counted_while_they_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is a 429, and each that ends, in whatever way, makes room."""
    monkeypatch.setattr(answers, "MAX_STREAMS", 1)
    started: list[int] = []

    async def events() -> AsyncGenerator[str]:
        yield "data: 1\n\n"
        with pytest.raises(RequestError) as refused:
            EventStream(events(), {})
        assert refused.value.status == 429
        started.append(EventStream.open_streams)

    async def send(_message: Message) -> None:
        pass

    async def broken(_message: Message) -> None:
        raise OSError

    await EventStream(events(), {}).stream_response(send)
    assert started == [1]
    with pytest.raises(OSError):  # noqa: PT011  (any will do)
        await EventStream(events(), {}).stream_response(broken)
    assert EventStream.open_streams == 0


async def test_a_reader_of_events_that_takes_its_time_gets_everything() -> None:
    """The last one and the end behind it too, an hour after they came."""
    takes = asyncio.Event()
    taken: list[Any] = []

    async def events() -> AsyncGenerator[str]:
        yield "data: a large result\n\n"

    async def send(message: Message) -> None:
        await takes.wait()
        taken.append(message)

    streaming = asyncio.create_task(EventStream(events(), {}).stream_response(send))
    await wait_an_hour()
    takes.set()
    await streaming
    assert [message.get("more_body") for message in taken] == [None, True, False]


async def test_a_reader_of_events_that_takes_nothing_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the events are closed."""
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.2)
    box, ended = Box(), asyncio.Event()

    async def events() -> AsyncGenerator[str]:
        try:
            while True:
                yield f"data: {'x' * 1_000_000}\n\n"
                await asyncio.sleep(0)  # as real ones wait for something
        finally:
            ended.set()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await EventStream(events(), {})(scope, receive, send)

    box.app = stream
    await box.start()
    caller = await box.connect(receive_bytes=4096)
    caller.send(b"GET / HTTP/1.1\r\nHost: box\r\n\r\n")
    async with asyncio.timeout(WAIT_SECONDS):
        await ended.wait()
        await box.lost.wait()
    await box.stop()
