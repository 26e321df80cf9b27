"""The synchronous route: ask, wait, and get the image on the same connection (https://fal.run)."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.admission import Admission
from server.catalogue import find_endpoint
from server.errors import RequestError
from server.events import Events
from server.jobs import Job
from server.routes.answers import read_json
from server.routes.doors import REQUEST_ID_HEADER, door_of
from server.routes.queue import replay
from server.store import Store


def make_router(
    store: Store, admission: Admission, events: Events, body_limit_bytes: int
) -> APIRouter:
    """Make the route over the given parts."""
    router = APIRouter(include_in_schema=False)

    async def run(request: Request, endpoint_id: str) -> Response:
        endpoint = find_endpoint(endpoint_id)
        body = await read_json(request, body_limit_bytes)
        # The job validates too, but this caller is here to hear it without waiting its turn.
        endpoint.parse(body)
        job = await admission.accept(endpoint, body, door_of(request).origin)
        return replay(await _wait(job.request_id))

    async def _wait(request_id: str) -> Job:
        with events.watch(request_id) as changed:
            while True:
                changed.clear()
                job = await store.get(request_id)
                if job and job.outcome:
                    return job
                if job is None or events.closed:
                    raise RequestError(
                        503,
                        "The server is stopping; the request is kept under its id.",
                        "runner_disconnected",
                        {REQUEST_ID_HEADER: request_id, "retry-after": "30"},
                    )
                await changed.wait()

    router.add_api_route("/{endpoint_id:path}", run, methods=["POST"])
    return router
