"""The synchronous route: ask, wait, and get the image on the same connection (https://fal.run)."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.admission import Admission
from server.dispatcher import Dispatcher
from server.jobs import Job
from server.routes.answers import read_json
from server.routes.auth import caller_of
from server.routes.doors import door_of
from server.routes.queue import replay
from server.routes.watching import Watching
from server.routes.wishes import read_wishes


async def disconnected(request: Request) -> None:
    """Return when the caller is gone. The body was read: only that message can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Waiter:
    """Waits for jobs with those who ask and stay on the line."""

    def __init__(
        self, watching: Watching, dispatcher: Dispatcher, *, cancel_on_disconnect: bool
    ) -> None:
        self._watching = watching
        self._dispatcher = dispatcher
        self._cancel_on_disconnect = cancel_on_disconnect

    async def wait(self, request: Request, job: Job) -> Job | None:
        """Return the completed job, or None when the caller left before that.

        A caller who leaves cancels a request that has not begun, if the operator wants that.
        Raises `RequestError` 503 when the server stops first.
        """
        watcher = self._watching.begin(job.request_id)
        leaving = asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait({watcher.coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not watcher.coming.done() and self._cancel_on_disconnect:
                await self._dispatcher.cancel_if_queued(job.request_id)
            told = await watcher.coming if watcher.coming.done() else None
            return told if isinstance(told, Job) else None
        finally:
            watcher.close()
            leaving.cancel()


def left() -> Response:
    """Make the answer for a caller who is gone; nobody reads it."""
    return Response(status_code=499)


def make_router(admission: Admission, waiter: Waiter, *, body_limit_bytes: int) -> APIRouter:
    """Make the route over the given parts."""
    router = APIRouter(include_in_schema=False)

    async def accept(request: Request, endpoint_id: str) -> Job:
        """Accept the request; its body, which may be large, is not kept while it is waited for."""
        endpoint = admission.find_endpoint(endpoint_id)
        body = await read_json(request, body_limit_bytes)
        # The job validates too, but this caller is here to hear it without waiting its turn.
        endpoint.parse(body)
        return await admission.accept(
            caller_of(request),
            endpoint,
            body,
            door_of(request).files_origin,
            read_wishes(request),
        )

    async def run(request: Request, endpoint_id: str) -> Response:
        job = await waiter.wait(request, await accept(request, endpoint_id))
        return replay(job) if job else left()

    router.add_api_route("/{endpoint_id:path}", run, methods=["POST"])
    return router
