"""Probes: live means that this process answers, ready that an image can be made.

Neither asks the runner anything, so both answer while it computes.
"""

from fastapi import APIRouter
from starlette.responses import Response

from server.dispatcher import Dispatcher
from server.routes.answers import AsciiJSONResponse
from server.settings import Settings
from server.store import Store


def make_router(settings: Settings, store: Store, dispatcher: Dispatcher) -> APIRouter:
    """Make the routes over the given parts."""
    router = APIRouter(tags=["health"])

    async def live() -> Response:
        """Answer 200 for as long as the server takes requests."""
        return AsciiJSONResponse({"status": "live"})

    async def ready() -> Response:
        """Answer 200 when an image can be made, else 503 with the reason."""
        problem = dispatcher.problem
        body = {
            "status": "not ready" if problem else "ready",
            "reason": problem,
            "pipeline": dispatcher.description,
            "safety": settings.safety,
            "queue": await store.count_by_status(),
        }
        return AsciiJSONResponse(body, status_code=503 if problem else 200)

    for path, probe in (("/health", live), ("/health/live", live), ("/health/ready", ready)):
        router.add_api_route(path, probe, methods=["GET", "HEAD"])
    return router
