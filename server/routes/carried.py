"""HTTP carried over a websocket, as fal does it at wss://ws.fal.run: one connection, many requests.

Each message is the JSON body of a synchronous request. Its answer is a `start` with status and
headers, the body, and an `end`; answers come in the order of the requests. The only client known,
fal's own SDK, takes for start and end what is text and has both `type` and `request_id`.
"""

import json
import time
import uuid
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import Response
from starlette.websockets import WebSocket

from server.errors import FalError
from server.routes.answers import aside, error_response, parse_json
from server.routes.conversations import Conversation, Parts
from server.routes.doors import REQUEST_ID_HEADER, WS_PREFIX
from server.routes.paths import find_carried
from server.routes.queue import replay
from server.routes.socket import NORMAL, Socket
from server.routes.wishes import read_wishes

MAX_WAITING = 16
"""Most requests of one connection that wait for their turn; with more it is closed."""


def make_router(parts: Parts) -> APIRouter:
    """Make the route."""
    router = APIRouter()

    async def connect(websocket: WebSocket, path: str) -> None:
        endpoint, wishes = find_carried(path), read_wishes(websocket)
        async with Conversation.begin(
            parts, websocket, endpoint, wishes=wishes, most_waiting=MAX_WAITING, may_drop=False
        ) as conversation:
            await _serve(conversation)

    router.add_api_websocket_route(f"{WS_PREFIX}/{{path:path}}", connect)
    return router


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request without its body, which may be large: when it came, and its id or its refusal."""

    came_at: float
    request_id: str = ""
    refusal: FalError | None = None


async def _serve(conversation: Conversation) -> None:
    """Answer requests until the caller leaves, or sends nothing for long."""
    try:
        while (asked := await _take(conversation)) is not None:
            answer = await _answer(conversation, asked)
            if answer:
                await _send(conversation.socket, answer, time.monotonic() - asked.came_at)
    except TimeoutError:
        await conversation.socket.close(NORMAL, "No requests")


async def _take(conversation: Conversation) -> _Asked | None:
    """Submit the next request; None when the caller is gone."""
    message = await conversation.listen()
    if message is None:
        return None
    came_at = time.monotonic()
    data = message.encode("utf-8") if isinstance(message, str) else message
    try:
        body = await aside(len(data), parse_json, data)
        return _Asked(came_at, await conversation.submit(body, conversation.wishes))
    except FalError as error:
        return _Asked(came_at, refusal=error)


async def _answer(conversation: Conversation, asked: _Asked) -> Response | None:
    """Return the answer that the same request has in HTTP; None when the caller is gone."""
    try:
        if asked.refusal:
            raise asked.refusal
        job = await conversation.completed(asked.request_id)
    except FalError as error:
        return error_response(error)
    return replay(job) if job else None


async def _send(socket: Socket, answer: Response, seconds: float) -> None:
    """Send an answer of HTTP as messages. `seconds` is how long it took to come."""
    headers = dict(answer.headers)
    request_id = headers.setdefault(REQUEST_ID_HEADER, str(uuid.uuid4()))
    meta = {"request_id": request_id, "status": answer.status_code}
    await socket.send(json.dumps({"type": "start", **meta, "headers": headers}))
    await socket.send(bytes(answer.body).decode("utf-8"))
    await socket.send(json.dumps({"type": "end", **meta, "time_to_first_byte_seconds": seconds}))
