"""The streaming route: ask, watch the images come, and get the result as the last event.

The request is a job in the queue like any other; only that somebody watches makes it show previews.
"""

import asyncio
import json
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.admission import Admission
from server.errors import FalError
from server.jobs import Job
from server.routes.answers import KEEP_ALIVE, EventStream, error_event, event, read_json
from server.routes.auth import caller_of
from server.routes.doors import REQUEST_ID_HEADER, door_of
from server.routes.paths import STREAM_SUFFIX
from server.routes.queue import replay
from server.routes.run import disconnected
from server.routes.watching import Watcher, Watching
from server.routes.wishes import read_wishes

FIRST_BYTE_SECONDS = 15.0
"""How long nothing is answered, so that an error can still be one of HTTP: most come at once."""

QUIET_SECONDS = 10.0
"""How long a stream is silent at most: fal's JavaScript client is patient for fifteen."""


class StreamRoutes:
    """The route over the given parts; `router` holds it."""

    def __init__(
        self,
        admission: Admission,
        watching: Watching,
        body_limit_bytes: int,
    ) -> None:
        self._admission = admission
        self._watching = watching
        self._body_limit_bytes = body_limit_bytes
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route(
            f"/{{endpoint_id:path}}{STREAM_SUFFIX}", self.stream, methods=["POST"]
        )

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
        watcher = self._watching.begin(job.request_id, previews=True)
        try:
            return await self._answer(request, watcher)
        except BaseException:
            self._watching.end(watcher)
            raise

    async def _answer(self, request: Request, watcher: Watcher) -> Response:
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
            self._watching.end(watcher)
            return Response(status_code=499)
        if watcher.coming.done():
            first = watcher.coming.result()
            if isinstance(first, Job) and first.outcome and first.outcome.http_status != 200:
                self._watching.end(watcher)
                return replay(first)
        headers = {REQUEST_ID_HEADER: watcher.request_id}
        return EventStream(_write(watcher), headers, lambda: self._watching.end(watcher))


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
