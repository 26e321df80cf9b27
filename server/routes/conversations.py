"""Websockets on which inputs come in and results go out, whatever form these have.

Each input is a job in the queue like any other, with the same limits and checks. One connection has
one at a time with the queue.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket

from server.admission import Admission, Wishes
from server.errors import RequestError
from server.family.endpoint import Endpoint
from server.jobs import Job
from server.keys import Keyring
from server.routes.auth import caller_of
from server.routes.doors import door_of
from server.routes.messages import Message
from server.routes.socket import OpenSockets, Socket
from server.routes.watching import Watching
from server.settings import Settings


class RevokedKeyError(RequestError):
    """The key that the websocket was opened with is not good any more."""

    def __init__(self) -> None:
        super().__init__(401, "invalid key credentials")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What all conversations share."""

    settings: Settings
    admission: Admission
    watching: Watching
    keys: Keyring
    sockets: OpenSockets


@dataclass(frozen=True, slots=True)
class Conversation:
    """One websocket with one endpoint."""

    parts: Parts
    socket: Socket
    endpoint: Endpoint
    owner: str
    origin: str
    wishes: Wishes

    @classmethod
    @contextlib.asynccontextmanager
    async def begin(
        cls,
        parts: Parts,
        websocket: WebSocket,
        endpoint: Endpoint,
        *,
        wishes: Wishes,
        most_waiting: int,
        may_drop: bool,
    ) -> AsyncIterator["Conversation"]:
        """Accept a websocket. Raises `RequestError` where that, or the endpoint, is refused."""
        endpoint = parts.admission.find_endpoint(endpoint.id)
        owner, origin = caller_of(websocket).owner, door_of(websocket).files_origin
        with parts.sockets.enter(owner):
            async with Socket.accept(
                websocket,
                most_waiting=most_waiting,
                most_bytes=parts.settings.body_limit_bytes,
                may_drop=may_drop,
            ) as socket:
                yield cls(parts, socket, endpoint, owner, origin, wishes)

    async def listen(self) -> Message | None:
        """Return the next message, None when the caller is gone.

        Raises `TimeoutError` for one that is silent for long.
        """
        return await self.socket.next(self.parts.settings.socket_idle_seconds)

    async def submit(self, body: Any, wishes: Wishes) -> str:
        """Have a request made and return its id. Raises `FalError` for one that is refused."""
        caller = self.parts.keys.get(self.owner)
        if caller is None:
            raise RevokedKeyError
        self.endpoint.parse(body)
        job = await self.parts.admission.accept(caller, self.endpoint, body, self.origin, wishes)
        return job.request_id

    async def completed(self, request_id: str) -> Job | None:
        """Return a request of ours when it is over; None, and it is stopped, when the caller goes.

        To be called at once after `submit`. Raises `RequestError` 503 when the server stops.
        """
        return await self.parts.watching.completed(request_id, self.socket)
