"""The one way to make a JSON answer, and the one way to stream events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Send

from server.errors import FalError, RequestError

SEND_SECONDS = 60.0
"""How long the reader of an event stream may take nothing before it is given up."""

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

    However it ends, `events` is closed then: when they are through, when the reader leaves, or
    when it stays but takes nothing for `SEND_SECONDS`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers={**headers, "cache-control": "no-store"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send what comes; returns early, with the answer incomplete, when nobody takes it."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        async with contextlib.aclosing(self._events):
            with contextlib.suppress(TimeoutError):
                await super().stream_response(send_in_time)


def event(body: Any) -> str:
    """Write one event, in ASCII as all JSON here."""
    return f"data: {json.dumps(body, ensure_ascii=True, allow_nan=False)}\n\n"


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


async def read_json(request: Request) -> Any:
    """Parse the body as JSON, whatever its content type says (curl sends none).

    Raises `RequestError` 400 for a body that is not JSON; NaN and Infinity are not JSON.
    """
    body = await request.body()
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The request body is not valid JSON: {_reason(error)}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)[:200]
