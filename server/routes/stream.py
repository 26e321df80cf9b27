"""The streaming route: ask, watch the images come, and get the result as the last event.

The request is a job in the queue like any other; only that somebody watches makes it show previews.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.admission import Admission
from server.dispatcher import Dispatcher
from server.errors import FalError, UnknownRequestError
from server.events import Events
from server.jobs import IllegalTransitionError, Job
from server.routes.answers import KEEP_ALIVE, EventStream, error_event, event, read_json
from server.routes.auth import caller_of
from server.routes.doors import REQUEST_ID_HEADER, door_of
from server.routes.queue import replay
from server.routes.run import disconnected, stopping_error
from server.routes.wishes import read_wishes
from server.store import Store

log = structlog.get_logger(__name__)

FIRST_BYTE_SECONDS = 15.0
"""How long nothing is answered, so that an error can still be one of HTTP: most come at once."""

QUIET_SECONDS = 10.0
"""How long a stream is silent at most: fal's JavaScript client is patient for fifteen."""


class StreamRoutes:
    """The route over the given parts; `router` holds it."""

    def __init__(
        self,
        store: Store,
        admission: Admission,
        dispatcher: Dispatcher,
        events: Events,
        body_limit_bytes: int,
    ) -> None:
        self._store = store
        self._admission = admission
        self._dispatcher = dispatcher
        self._events = events
        self._body_limit_bytes = body_limit_bytes
        self._cancels: set[asyncio.Task[None]] = set()
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/{endpoint_id:path}/stream", self.stream, methods=["POST"])

    async def stream(self, request: Request, endpoint_id: str) -> Response:
        """Accept a request and send what it shows as server-sent events, the result last.

        Errors are those of HTTP until something is sent. A caller who leaves cancels the request.
        """
        endpoint = self._admission.find_endpoint(endpoint_id)
        EventStream.check_room()
        body = await read_json(request, self._body_limit_bytes)
        endpoint.parse(body)
        job = await self._admission.accept(
            caller_of(request),
            endpoint,
            body,
            door_of(request).files_origin,
            read_wishes(request),
        )
        # Nothing is awaited in between, so no worker has asked yet whether somebody watches.
        watcher = Watcher(job.request_id, self._store, self._events)
        try:
            return await self._answer(request, watcher)
        except BaseException:
            self._end(watcher)
            raise

    async def _answer(self, request: Request, watcher: "Watcher") -> Response:
        leaving = asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait(
                {watcher.coming, leaving},
                timeout=FIRST_BYTE_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            leaving.cancel()
        if not watcher.coming.done() and leaving.done():
            self._end(watcher)
            return Response(status_code=499)
        if watcher.coming.done():
            first = watcher.coming.result()
            if isinstance(first, Job) and first.outcome and first.outcome.http_status != 200:
                self._end(watcher)
                return replay(first)
        headers = {REQUEST_ID_HEADER: watcher.request_id}
        return EventStream(_write(watcher), headers, lambda: self._end(watcher))

    def _end(self, watcher: "Watcher") -> None:
        """Watch no longer, and stop a request that is not over: it was made to be watched.

        When the server stops, it is kept instead and made after the next start.
        """
        watcher.close()
        if watcher.is_over or self._events.closed:
            return
        task = asyncio.create_task(self._cancel(watcher.request_id))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _cancel(self, request_id: str) -> None:
        try:
            with contextlib.suppress(IllegalTransitionError, UnknownRequestError):
                await self._dispatcher.cancel(request_id)
        except FalError as error:
            log.error("cannot cancel", request_id=request_id, reason=str(error.body))


class Watcher:
    """One listener of one job. `coming` is the next thing to tell: a partial answer, or the job."""

    def __init__(self, request_id: str, store: Store, events: Events) -> None:
        self._store = store
        self._events = events
        self._open = contextlib.ExitStack()
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


async def _write(watcher: Watcher) -> AsyncGenerator[str]:
    """Yield what the watcher has to tell as events, up to the result or an error."""
    while True:
        done, _ = await asyncio.wait({watcher.coming}, timeout=QUIET_SECONDS)
        if not done:
            yield KEEP_ALIVE
            continue
        try:
            told = watcher.coming.result()
        except FalError as error:
            yield error_event(error.status, error.body)
            return
        if isinstance(told, Job):
            yield _last_event(told)
            return
        yield event(told)
        watcher.advance()


def _last_event(job: Job) -> str:
    """Write the result, which is the queue's own, or the error that came instead."""
    outcome = job.outcome
    if outcome is None:
        raise ValueError(f"{job.request_id} is not completed")
    body = json.loads(outcome.body)
    return event(body) if outcome.http_status == 200 else error_event(outcome.http_status, body)
