"""Requests whose callers are there to see them: they wait, or what comes is shown as it comes.

Each is a job in the queue like any other.
"""

import asyncio
import contextlib
from typing import Any

import structlog

from server.dispatcher import Dispatcher
from server.errors import FalError, RequestError, UnknownRequestError
from server.events import Events
from server.jobs import IllegalTransitionError, Job
from server.routes.doors import REQUEST_ID_HEADER
from server.routes.socket import Socket
from server.store import Store

log = structlog.get_logger(__name__)


def stopping_error(request_id: str) -> RequestError:
    """Make the answer for who waits for a request that this server will not finish."""
    return RequestError(
        503,
        "The server is stopping; the request is kept under its id.",
        "runner_disconnected",
        {REQUEST_ID_HEADER: request_id, "retry-after": "30"},
    )


class Watching:
    """Begins to watch jobs, and stops those that nobody watches any more."""

    def __init__(self, store: Store, dispatcher: Dispatcher, events: Events) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._events = events
        self._cancels: set[asyncio.Task[None]] = set()

    def begin(self, request_id: str, *, previews: bool = False) -> "Watcher":
        """Watch a job. For its previews nothing may be awaited since it was accepted.

        Else a worker may have asked already whether somebody wants them.
        """
        return Watcher(request_id, self._store, self._events, previews=previews)

    def end(self, watcher: "Watcher") -> None:
        """Watch no longer, and stop a request that is not over: it was made to be watched.

        When the server stops, it is kept instead and made after the next start.
        """
        watcher.close()
        if watcher.is_over or self._events.closed:
            return
        task = asyncio.create_task(self._cancel(watcher.request_id))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def completed(self, request_id: str, socket: Socket) -> Job | None:
        """Wait for a job that was just accepted; None when the websocket is gone before it is over.

        Then the job is stopped, even when the server stops: its caller was told no id to come
        back with. Raises `RequestError` 503 when the server stops.
        """
        watcher = self.begin(request_id)
        try:
            told = await socket.unless_gone(watcher.coming)
        except FalError:
            if self._events.closed:
                raise RequestError(
                    503, "The server is stopping", "runner_disconnected", {"retry-after": "30"}
                ) from None
            raise
        else:
            return told if isinstance(told, Job) else None
        finally:
            watcher.close()
            if not watcher.is_over:
                await self._cancel(request_id)

    async def _cancel(self, request_id: str) -> None:
        try:
            with contextlib.suppress(IllegalTransitionError, UnknownRequestError):
                await self._dispatcher.cancel(request_id)
        except FalError as error:
            log.error("cannot cancel", request_id=request_id, reason=str(error.body))


class Watcher:
    """One listener of one job. `coming` is the next thing to tell: a partial answer, or the job."""

    def __init__(self, request_id: str, store: Store, events: Events, *, previews: bool) -> None:
        self._store = store
        self._events = events
        self._open = contextlib.ExitStack()
        if previews:
            self._open.enter_context(events.want_previews(request_id))
        self._changed = self._open.enter_context(events.watch(request_id))
        self.request_id = request_id
        self.is_over = False
        self.coming = self._start()

    def advance(self) -> None:
        """Begin to wait for the next, when `coming` has been told."""
        self.coming = self._start()

    def close(self) -> None:
        """Listen no longer; may be called again."""
        self.coming.cancel()
        self._open.close()

    def _start(self) -> asyncio.Task[dict[str, Any] | Job]:
        return asyncio.create_task(self._next(), name=f"watch {self.request_id}")

    async def _next(self) -> dict[str, Any] | Job:
        """Raises `RequestError` 503 when the server stops."""
        while True:
            self._changed.clear()
            partial = self._events.take_preview(self.request_id)
            if partial:
                return partial
            job = await self._store.get(self.request_id)
            if job and job.outcome:
                self.is_over = True
                return job
            if job is None or self._events.closed:
                raise stopping_error(self.request_id)
            await self._changed.wait()
