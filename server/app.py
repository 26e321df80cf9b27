"""The wiring: every part made once, in order, and handed to whoever needs it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from server.admission import Admission
from server.dispatcher import Dispatcher
from server.errors import ConfigurationError, FalError, RequestError
from server.events import Events
from server.files import FileStore
from server.inputs import InputPreparer
from server.routes import health, openapi, queue, run, storage
from server.routes.answers import AsciiJSONResponse, error_response, handle_fal_error
from server.routes.auth import AuthMiddleware
from server.routes.doors import DoorMiddleware, RequestIdMiddleware
from server.runners.local import LocalRunner
from server.runners.messages import Load
from server.settings import Settings
from server.store import Store

log = structlog.get_logger(__name__)

EXPOSED_HEADERS = (
    "x-fal-request-id",
    "x-fal-error-type",
    "x-fal-needs-retry",
    "x-fal-billable-units",
    "retry-after",
)
"""What a browser page may read of our answers; without this it sees an empty request id."""


def create_app(settings: Settings) -> FastAPI:
    """Make the server's app. Nothing runs until its lifespan is entered.

    Raises `ConfigurationError` when the settings ask for what cannot be given.
    """
    check_settings(settings)
    store = Store(settings.data_dir)
    files = FileStore(settings.data_dir / "files")
    inputs = InputPreparer(settings, files)
    events = Events()
    runner = LocalRunner(
        Load(
            pipeline_factory=settings.pipeline_factory,
            model=settings.model,
            device=settings.device,
            dtype=settings.dtype,
            log_level=settings.log_level,
        )
    )
    dispatcher = Dispatcher(settings, store, files, inputs, events, runner)
    admission = Admission(store, dispatcher.wake)

    async def drain(seconds: float) -> None:
        """Stop the work, and then the waiting for it; HTTP goes on. May be called again."""
        await dispatcher.stop(seconds)
        events.close()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await store.open()
        try:
            await _recover(store, files, inputs)
            dispatcher.start()
            sweeper = asyncio.create_task(_sweep(settings, store, files), name="sweeper")
            try:
                yield
            finally:
                sweeper.cancel()
                await drain(0)
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
            HTTPException: _handle_http_error,
        },
    )
    app.state.drain = drain
    app.include_router(health.make_router(settings, store, dispatcher))
    app.include_router(openapi.make_router())
    app.include_router(storage.make_router(store, files))
    limit = settings.body_limit_bytes
    app.include_router(queue.QueueRoutes(store, admission, dispatcher, events, limit).router)
    app.include_router(run.make_router(store, admission, events, limit))
    # Last added is outermost. CORS is outside whatever refuses, so that a browser can read it.
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
    return app


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


async def _recover(store: Store, files: FileStore, inputs: InputPreparer) -> None:
    """Put the data folder in order after a stop of any kind, before any request is taken."""
    requeued = await store.requeue_all_in_progress()
    inputs.sweep()
    orphans = await asyncio.to_thread(files.sweep, await store.all_file_names())
    if requeued or orphans:
        log.info("recovered", requeued_jobs=len(requeued), orphaned_files=orphans)


async def _sweep(settings: Settings, store: Store, files: FileStore) -> None:
    """Erase what is past its time, for as long as the server runs."""
    while True:
        try:
            names = await store.erase_expired(time.time())
            for name in names:
                await asyncio.to_thread(files.delete, name)
        except Exception:
            log.exception("the sweep failed")
        await asyncio.sleep(settings.sweep_seconds)


async def _handle_http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    return error_response(RequestError(error.status_code, error.detail), headers)
