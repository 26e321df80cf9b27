"""The synchronous route: ask, wait, and get the image on the same connection (https://fal.run)."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.admission import Admission
from server.dispatcher import Dispatcher
from server.errors import RequestError
from server.events import Events
from server.jobs import Job
from server.routes.answers import read_json
from server.routes.auth import caller_of
from server.routes.doors import REQUEST_ID_HEADER, door_of
from server.routes.queue import replay
from server.routes.wishes import read_wishes
from server.store import Store


def stopping_error(request_id: str) -> RequestError:
    """Make the answer for who waits for a request that this server will not finish."""
    return RequestError(
        503,
        "The server is stopping; the request is kept under its id.",
        "runner_disconnected",
        {REQUEST_ID_HEADER: request_id, "retry-after": "30"},
    )


async def disconnected(request: Request) -> None:
    """Return when the caller is gone. The body was read: only that message can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_router(
    store: Store,
    admission: Admission,
    dispatcher: Dispatcher,
    events: Events,
    *,
    body_limit_bytes: int,
    cancel_on_disconnect: bool,
) -> APIRouter:
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
        job = await accept(request, endpoint_id)
        waiting = asyncio.create_task(_wait(job.request_id))
        leaving = asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done() and cancel_on_disconnect:
                await dispatcher.cancel_if_queued(job.request_id)
            return replay(await waiting) if waiting.done() else Response(status_code=499)
        finally:
            waiting.cancel()
            leaving.cancel()

    async def _wait(request_id: str) -> Job:
        with events.watch(request_id) as changed:
            while True:
                changed.clear()
                job = await store.get(request_id)
                if job and job.outcome:
                    return job
                if job is None or events.closed:
                    raise stopping_error(request_id)
                await changed.wait()

    router.add_api_route("/{endpoint_id:path}", run, methods=["POST"])
    return router
