"""The realtime route: each message is an input, and its answer comes back on the same websocket.

Inputs that wait for their turn are dropped, the oldest first, when newer ones come: fal's
buffering. An answer is the endpoint's output; in MessagePack its images are raw bytes, and no file
is stored for them.
"""

import json
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.websockets import WebSocket

from server.errors import FalError, RequestError
from server.jobs import Outcome
from server.keys import Caller
from server.routes.answers import aside
from server.routes.conversations import Conversation, Parts
from server.routes.messages import (
    IDLE_MESSAGE,
    UNAUTHORIZED_CODE,
    Message,
    error_message,
    read_message,
    tag_of,
    unauthorized_message,
    write_answer,
)
from server.routes.paths import find_realtime

DEFAULT_BUFFERING = 2
"""What fal's clients recommend."""

MAX_BUFFERING = 60


def make_router(parts: Parts) -> APIRouter:
    """Make the route, which takes every path of a websocket that is left."""
    router = APIRouter()

    async def connect(websocket: WebSocket, path: str) -> None:
        endpoint = find_realtime(path)
        buffering = _read_buffering(websocket.query_params.get("max_buffering"))
        async with Conversation.begin(
            parts, websocket, endpoint, most_waiting=buffering, may_drop=True
        ) as conversation:
            await _serve(conversation)

    router.add_api_websocket_route("/{path:path}", connect)
    return router


async def _serve(conversation: Conversation) -> None:
    """Answer inputs until the caller leaves, or sends nothing for long."""
    socket = conversation.socket
    try:
        while (message := await conversation.listen()) is not None:
            caller = conversation.caller()
            if caller is None:
                await socket.send(unauthorized_message())
                await socket.close(UNAUTHORIZED_CODE, "Unauthorized")
                return
            answer = await _answer(conversation, caller, message)
            if answer is not None:
                await socket.send(answer)
    except TimeoutError:
        await socket.send(IDLE_MESSAGE)


async def _answer(conversation: Conversation, caller: Caller, message: Message) -> Message | None:
    """Return the result of one input, or its error; None when the caller is gone."""
    binary = isinstance(message, bytes)
    tag: dict[str, str] = {}
    try:
        body = await aside(len(message), read_message, message)
        tag = tag_of(body)
        outcome = await _make(conversation, caller, body, binary=binary)
        if outcome is None:
            return None
        if outcome.http_status != 200:
            raise FalError(outcome.http_status, json.loads(outcome.body))
        return await aside(len(outcome.body), write_answer, outcome.body, tag, binary=binary)
    except FalError as error:
        return error_message(error, tag)


async def _make(
    conversation: Conversation, caller: Caller, body: Any, *, binary: bool
) -> Outcome | None:
    wishes = replace(conversation.wishes, webhook_url=None)
    if binary and isinstance(body, dict):
        # The images are in the answer, so nothing of it needs to stay here.
        body = {**body, "sync_mode": True}
        wishes = replace(wishes, keep_payload=False)
    job = await conversation.ask(caller, body, wishes)
    return job.outcome if job else None


def _read_buffering(text: str | None) -> int:
    if text is None:
        return DEFAULT_BUFFERING
    if text.isascii() and text.isdigit() and len(text) < 3 and 1 <= int(text) <= MAX_BUFFERING:
        return int(text)
    raise RequestError(
        400, f"max_buffering must be a whole number from 1 to {MAX_BUFFERING}", "bad_request"
    )
