"""Probes: live means that this process answers, ready that an image can be made.

Neither asks the runner anything, so both answer while it computes. Probes are open to all, but
the metrics tell how busy a box is and with what: where a key is set they need it, as everything
else does. Prometheus sends it as its bearer token (`authorization: {credentials: ...}`).
"""

from fastapi import APIRouter
from starlette.responses import Response

from pipelines.checker_folder import CheckerFolder
from server.admission import disk_problem
from server.clock import Clock
from server.dispatcher import Dispatcher
from server.keys import Keyring
from server.metrics import Metrics
from server.routes.answers import AsciiJSONResponse
from server.runners.messages import Loading
from server.settings import Settings
from server.store import Store


def make_router(
    settings: Settings,
    store: Store,
    dispatcher: Dispatcher,
    metrics: Metrics,
    clock: Clock,
    keys: Keyring,
    checker: CheckerFolder | None,
) -> APIRouter:
    """Make the routes over the given parts."""
    router = APIRouter(tags=["health"])
    is_inward = bool(settings.fetch_allow or settings.webhook_allow)

    async def live() -> Response:
        """Answer 200 for as long as the server takes requests."""
        return AsciiJSONResponse({"status": "live"})

    async def ready() -> Response:
        """Answer 200 when an image can be made, else 503 with the reason."""
        problem = dispatcher.problem or disk_problem(settings) or _storage(store.problem)
        body = {
            "status": "not ready" if problem else "ready",
            "reason": problem,
            "model": ", ".join(folder.name for folder in settings.folders.values()),
            "models": {
                model: {"state": state.word, "reason": state.reason}
                for model, state in dispatcher.model_states.items()
            },
            "pipelines": dispatcher.descriptions,
            "loading": [_loading(runner) for runner in dispatcher.loading],
            "safety": settings.safety,
            "safety_checker": checker.description if checker else None,
            # No reason to send callers away: those whose keys were known before are served.
            "keys": "the key file cannot be used, see the log" if keys.problem else "ok",
            "private_targets": "listed ones" if is_inward else "none",
            "queue": {"IN_QUEUE": len(store.backlog), "IN_PROGRESS": store.backlog.in_progress},
        }
        return AsciiJSONResponse(body, status_code=503 if problem else 200)

    async def show_metrics() -> Response:
        """Answer Prometheus' text format."""
        oldest = await store.oldest_queued_at()
        metrics.oldest_wait_seconds = 0.0 if oldest is None else max(0.0, clock() - oldest)
        return Response(metrics.render(), media_type=metrics.content_type)

    router.add_api_route("/metrics", show_metrics, methods=["GET"])
    for path, probe in (("/health", live), ("/health/live", live), ("/health/ready", ready)):
        router.add_api_route(path, probe, methods=["GET", "HEAD"])
    return router


def _loading(progress: Loading | None) -> dict[str, str | float] | None:
    return {"stage": progress.stage, "fraction": progress.fraction} if progress else None


def _storage(problem: str | None) -> str | None:
    return f"storage: {problem}" if problem else None
