"""The one way to make a JSON answer, and the one way to stream events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.errors import FalError, InputError, RequestError

P = ParamSpec("P")
T = TypeVar("T")

MAX_DEPTH = 100
MAX_VALUES = 50_000
"""Most commas and opening brackets of a body: sixty-four megabytes of them would become gigabytes
of Python objects, and as many mistakes to list. Data URIs have one comma each."""

LONG_BODY_BYTES = 256 * 1024
UNREADABLE = "There was an error parsing the body"

MAX_STREAMS = 1000
"""Most event streams at a time: each looks into the queue every two seconds."""

KEEP_ALIVE = ": nothing new\n\n"
"""A comment, which readers of events skip: it keeps time limits on silence from striking, such as
Node's of five minutes and most proxies' of one."""


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII: some clients cut answers between the bytes of one character."""

    def render(self, content: Any) -> bytes:
        """Encode with every character above ASCII escaped."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode("ascii")


class EventStream(StreamingResponse):
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    However it ends, `events` is closed then: when they are through, or when the reader leaves or
    is hung up on, as one that takes nothing is (see `server.protocol`). `on_end` is called then
    too, even if nothing of the events was ever sent.
    """

    media_type = "text/event-stream"

    open_streams = 0
    """How many there are now, of all requests."""

    def __init__(
        self,
        events: AsyncGenerator[str],
        headers: Mapping[str, str],
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """Raises `RequestError` 429 when there are too many already."""
        EventStream.check_room()
        super().__init__(events, headers={**headers, "cache-control": "no-store"})
        self._events = events
        self._on_end = on_end

    @staticmethod
    def check_room() -> None:
        """Raise `RequestError` 429 when no further stream may be opened."""
        if EventStream.open_streams >= MAX_STREAMS:
            raise RequestError(429, "Too many event streams", headers={"retry-after": "10"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the events, and then have it known that this is over."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._on_end:
                self._on_end()

    async def stream_response(self, send: Send) -> None:
        """Send what comes, however long the reader takes for it."""
        EventStream.open_streams += 1
        try:
            async with contextlib.aclosing(self._events):
                await super().stream_response(send)
        finally:
            EventStream.open_streams -= 1


def event(body: Any) -> str:
    """Write one event, in ASCII as all JSON here."""
    return f"data: {json.dumps(body, ensure_ascii=True, allow_nan=False)}\n\n"


def error_event(status: int, body: Any) -> str:
    """Write the event of an error. It is no JSON on purpose: fal's clients raise on that alone."""
    detail = json.dumps(body, ensure_ascii=True, allow_nan=False)
    return f"event: error\ndata: error {status}: {detail}\n\n"


def error_response(error: FalError, headers: Mapping[str, str] | None = None) -> Response:
    """Make the answer for an error, in fal's body and with its headers."""
    return AsciiJSONResponse(
        error.body, status_code=error.status, headers={**error.headers, **(headers or {})}
    )


async def handle_fal_error(_request: Request, error: Exception) -> Response:
    """Answer for an error of ours that a route raised."""
    if not isinstance(error, FalError):
        raise error
    return error_response(error)


async def handle_leaving(_request: Request, _error: Exception) -> Response:
    """Answer a caller who left before the end of its request; nobody reads this."""
    return error_response(RequestError(499, "The caller left"))


async def read_json(request: Request, limit_bytes: int) -> Any:
    """Parse the body as JSON, whatever its content type says (curl sends none).

    Raises `RequestError` 413 for a body above `limit_bytes`, `InputError` `json_invalid` for
    one that is not JSON (NaN and Infinity are not), and `RequestError` 400 for one that is
    nested more than a hundred deep, has more than `MAX_VALUES` values, or a number of thousands
    of digits.
    """
    body = await read_body(request, limit_bytes)
    return await aside(len(body), parse_json, body)


async def aside(size_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work on so many bytes here, or in a thread when they are many.

    Each step over tens of megabytes takes a tenth of a second: others get their turn between.
    """
    if size_bytes <= LONG_BODY_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def parse_json(body: bytes | bytearray) -> Any:
    """Parse JSON, as `read_json` does and with its errors."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise RequestError(400, UNREADABLE)
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _json_invalid(error.pos, error.msg) from error
    except UnicodeDecodeError as error:
        raise _json_invalid(error.start, "not UTF-8, UTF-16 or UTF-32") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(400, UNREADABLE) from error
    if is_too_deep(value):
        raise RequestError(400, UNREADABLE)
    return value


async def read_body(request: Request, limit_bytes: int) -> bytearray:
    """Collect the body; one that says it is too long is refused before it is sent.

    Raises `RequestError` 413.
    """
    too_long = RequestError(413, f"The body exceeds {limit_bytes} bytes")
    declared = request.headers.get("content-length", "")
    # A text of more digits than the limit is a greater number: HTTP allows no sign.
    if declared.isdecimal() and int(declared[:20]) > limit_bytes:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_long
    return body


def is_too_deep(value: Any) -> bool:
    """Measure without recursion: what would overflow the stack here would do so later too."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def _json_invalid(position: int, reason: str) -> InputError:
    """Make FastAPI's own error for a body that does not parse."""
    item = {
        "type": "json_invalid",
        "loc": ["body", position],
        "msg": "JSON decode error",
        "input": {},
        "ctx": {"error": reason},
    }
    return InputError([item])


def _refuse_constant(name: str) -> Any:
    raise json.JSONDecodeError(f"{name} is not a JSON number", name, 0)
