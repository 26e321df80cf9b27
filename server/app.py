"""The wiring: every part made once, in order, and handed to whoever needs it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.admission import Admission
from server.clock import SteadyClock
from server.delivery import Courier, trusted_authorities
from server.dispatcher import Dispatcher
from server.errors import ConfigurationError, FalError, RequestError
from server.events import Events
from server.files import FileStore
from server.inputs import InputPreparer
from server.jobs import Job
from server.metrics import Metrics
from server.routes import health, jwks, openapi, queue, run, storage
from server.routes.answers import (
    AsciiJSONResponse,
    error_response,
    handle_fal_error,
    handle_leaving,
)
from server.routes.auth import AuthMiddleware
from server.routes.doors import DoorMiddleware, RequestIdMiddleware
from server.runners.local import Limits, LocalRunner
from server.runners.messages import Load
from server.settings import ENV_PREFIX, Settings
from server.signing import Signer
from server.store import Store
from server.store.outbox import Outbox
from server.targets import AllowList
from server.telemetry import prompt_in
from server.upkeep import recover, sweep
from server.webhooks import WebhookSender
from server.worker import Parts

log = structlog.get_logger(__name__)

EXPOSED_HEADERS = (
    "x-fal-request-id",
    "x-fal-error-type",
    "x-fal-needs-retry",
    "x-fal-billable-units",
    "x-fal-request-timeout-type",
    "retry-after",
)
"""What a browser page may read of our answers: without it fal's client there sees an empty request
id, and takes a time-out that its own caller asked for as one to try again after."""

WEBHOOK_STOP_SECONDS = 1.0
"""How long a stop waits for webhooks under way; the others are sent after the next start."""


def create_app(settings: Settings) -> FastAPI:
    """Make the server's app. Nothing runs until its lifespan is entered.

    Raises `ConfigurationError` when the settings ask for what cannot be given.
    """
    check_settings(settings)
    store = Store(settings.data_dir)
    files = FileStore(settings.data_dir / "files")
    inputs = InputPreparer(settings, files)
    events = Events()
    clock = SteadyClock()
    metrics = Metrics(clock, store.backlog)
    signer = Signer(settings.data_dir / "keys")
    webhooks = WebhookSender(
        Outbox(store), make_courier(settings), signer, clock, on_attempt=metrics.webhook
    )

    def on_completed(job: Job) -> None:
        metrics.completed(job)
        if job.webhook_url:
            webhooks.wake()
        log.info(
            "completed",
            request_id=job.request_id,
            http_status=job.outcome.http_status if job.outcome else None,
            inference_seconds=job.outcome.inference_seconds if job.outcome else None,
            **({"prompt": prompt_in(job.input)} if settings.log_prompts else {}),
        )

    parts = Parts(
        settings=settings,
        store=store,
        files=files,
        inputs=inputs,
        events=events,
        metrics=metrics,
        clock=clock,
        on_completed=on_completed,
    )
    dispatcher = Dispatcher(parts, [make_runner(settings, name) for name in settings.devices])
    admission = Admission(settings, store, clock, dispatcher.on_accepted)

    async def drain(seconds: float) -> None:
        """Stop the work, and then the waiting for it; HTTP goes on. May be called again."""
        await dispatcher.stop(seconds)
        events.close()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await store.open()
        try:
            await recover(store, files, inputs, clock)
            await webhooks.start()
            dispatcher.start(held=settings.start_mode == "hold")
            sweeper = asyncio.create_task(
                sweep(store, files, clock, settings.sweep_seconds), name="sweeper"
            )
            try:
                yield
            finally:
                sweeper.cancel()
                await drain(0)
                await webhooks.stop(WEBHOOK_STOP_SECONDS)
        finally:
            await store.close()

    app = FastAPI(
        title="flux2-serve",
        version=version("flux2-serve"),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=AsciiJSONResponse,
        exception_handlers={
            FalError: handle_fal_error,
            ClientDisconnect: handle_leaving,
            HTTPException: _handle_http_error,
        },
    )
    app.state.drain = drain
    app.state.toggle_hold = dispatcher.toggle_hold
    app.include_router(health.make_router(settings, store, dispatcher, metrics, clock))
    app.include_router(openapi.make_router())
    app.include_router(jwks.make_router(signer))
    app.include_router(storage.make_router(store, files, metrics))
    limit = settings.body_limit_bytes
    app.include_router(queue.QueueRoutes(store, admission, dispatcher, events, limit).router)
    app.include_router(
        run.make_router(
            store,
            admission,
            dispatcher,
            events,
            body_limit_bytes=limit,
            cancel_on_disconnect=settings.cancel_on_disconnect,
        )
    )
    _add_middleware(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Last added is outermost. CORS is outside whatever refuses, so that a browser can read it."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    app.add_middleware(AuthMiddleware, api_key=key)
    app.add_middleware(DoorMiddleware, public_url=settings.public_url)
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=".*",
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(RequestIdMiddleware)


def make_runner(settings: Settings, device: str) -> LocalRunner:
    """Make the runner for one device; it starts when the dispatcher does."""
    load = Load(
        pipeline_factory=settings.pipeline_factory,
        model=settings.model,
        device=device,
        dtype=settings.dtype,
        log_level=settings.log_level,
    )
    limits = Limits(
        load_seconds=settings.load_seconds,
        stage_seconds=settings.stage_seconds,
        step_seconds=settings.step_seconds,
    )
    return LocalRunner(load, limits)


def make_courier(settings: Settings) -> Courier:
    """Make what carries webhooks to whom the settings allow."""
    allowed = AllowList.parse(f"{ENV_PREFIX}WEBHOOK_ALLOW", settings.webhook_allow)
    return Courier(allowed.resolve, trusted_authorities(settings.outbound_ca_file))


def check_settings(settings: Settings) -> None:
    """Refuse to start on settings that would make the server lie.

    Raises `ConfigurationError`.
    """
    if settings.safety != "off":
        raise ConfigurationError(
            f"safety is {settings.safety!r}, but this version has no safety checker yet, and "
            "will not report has_nsfw_concepts for images that nobody looked at. "
            "Set FLUX2_SAFETY=off to serve unchecked images on your own responsibility."
        )
    if settings.model is None:
        raise ConfigurationError(
            "no model: set FLUX2_MODEL or --model to a FLUX.2 folder in the diffusers layout, "
            "or make a tiny one with `flux2-serve demo-model DIR`."
        )


async def _handle_http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    return error_response(RequestError(error.status_code, error.detail), headers)
