"""The realtime route: each message is an input, and its answer comes back on the same websocket.

Inputs that wait for their turn are dropped, the oldest first, when newer ones come: fal's
buffering. An answer is the endpoint's output; in MessagePack its images are raw bytes, and no file
is stored for them.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.websockets import WebSocket

from server.errors import FalError, RequestError
from server.routes.answers import aside
from server.routes.conversations import Conversation, Parts, RevokedKeyError
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
from server.routes.wishes import read_wishes

DEFAULT_BUFFERING = 2
"""What fal's clients recommend."""

MAX_BUFFERING = 60


def make_router(parts: Parts) -> APIRouter:
    """Make the route, which takes every path of a websocket that is left."""
    router = APIRouter()

    async def connect(websocket: WebSocket, path: str) -> None:
        endpoint = find_realtime(path)
        buffering = _read_buffering(websocket.query_params.get("max_buffering"))
        wishes = read_wishes(websocket, may_notify=False)
        async with Conversation.begin(
            parts, websocket, endpoint, wishes=wishes, most_waiting=buffering, may_drop=True
        ) as conversation:
            await _serve(conversation)

    router.add_api_websocket_route("/{path:path}", connect)
    return router


@dataclass(frozen=True, slots=True)
class _Asked:
    """An input that was submitted or refused, without its content, which may be large."""

    binary: bool
    tag: dict[str, str]
    request_id: str = ""
    refusal: FalError | None = None


async def _serve(conversation: Conversation) -> None:
    """Answer inputs until the caller leaves, or sends nothing for long."""
    socket = conversation.socket
    try:
        while (asked := await _take(conversation)) is not None:
            if isinstance(asked.refusal, RevokedKeyError):
                await socket.send(unauthorized_message())
                await socket.close(UNAUTHORIZED_CODE, "Unauthorized")
                return
            answer = await _answer(conversation, asked)
            if answer is not None:
                await socket.send(answer)
    except TimeoutError:
        await socket.send(IDLE_MESSAGE)


async def _take(conversation: Conversation) -> _Asked | None:
    """Submit the next input; None when the caller is gone."""
    message = await conversation.listen()
    if message is None:
        return None
    binary = isinstance(message, bytes)
    tag: dict[str, str] = {}
    try:
        body = await aside(len(message), read_message, message)
        tag = tag_of(body)
        return _Asked(binary, tag, await _submit(conversation, body, binary=binary))
    except FalError as error:
        return _Asked(binary, tag, refusal=error)


async def _submit(conversation: Conversation, body: Any, *, binary: bool) -> str:
    wishes = conversation.wishes
    if binary and isinstance(body, dict):
        # The images are in the answer, so nothing of it needs to stay here.
        body = {**body, "sync_mode": True}
        wishes = replace(wishes, keep_payload=False)
    return await conversation.submit(body, wishes)


async def _answer(conversation: Conversation, asked: _Asked) -> Message | None:
    """Return the result of an input, or its error; None when the caller is gone."""
    try:
        if asked.refusal:
            raise asked.refusal
        job = await conversation.completed(asked.request_id)
        outcome = job.outcome if job else None
        if outcome is None:
            return None
        if outcome.http_status != 200:
            raise FalError(outcome.http_status, json.loads(outcome.body))
        size = len(outcome.body)
        return await aside(size, write_answer, outcome.body, asked.tag, binary=asked.binary)
    except FalError as error:
        return error_message(error, asked.tag)


def _read_buffering(text: str | None) -> int:
    if text is None:
        return DEFAULT_BUFFERING
    if text.isascii() and text.isdigit() and len(text) < 3 and 1 <= int(text) <= MAX_BUFFERING:
        return int(text)
    raise RequestError(
        400, f"max_buffering must be a whole number from 1 to {MAX_BUFFERING}", "bad_request"
    )
