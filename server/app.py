"""The HTTP app: the routes over the gateway's parts, and what stands in front of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.errors import FalError, RequestError
from server.gateway import Gateway
from server.names import OwnNames
from server.offer import Offer
from server.routes import (
    carried,
    files,
    health,
    jwks,
    models,
    openapi,
    queue,
    realtime,
    requests,
    run,
    stream,
    tokens,
)
from server.routes.answers import (
    AsciiJSONResponse,
    error_response,
    handle_fal_error,
    handle_leaving,
)
from server.routes.auth import AuthMiddleware, Gate
from server.routes.conversations import Parts
from server.routes.doors import DoorMiddleware, RequestIdMiddleware
from server.routes.openai_errors import OpenAIErrorsMiddleware
from server.routes.openai_images import ImageRoutes
from server.routes.origins import AllowedOrigins, HostMiddleware, OriginMiddleware
from server.routes.socket import OpenSockets
from server.routes.uploads import UploadRoutes
from server.routes.watching import Watching
from server.settings import Settings

EXPOSED_HEADERS = (
    "x-fal-request-id",
    "x-fal-error-type",
    "x-fal-needs-retry",
    "x-fal-billable-units",
    "x-fal-request-timeout-type",
    "x-flux2-settings",
    "retry-after",
    "etag",
)
"""What a browser page may read of our answers: without it fal's client there sees an empty request
id, and takes a time-out that its own caller asked for as one to try again after."""


def create_app(settings: Settings) -> FastAPI:
    """Make the server's app. Nothing runs until its lifespan is entered.

    Raises `ConfigurationError` when the settings ask for what cannot be given.
    """
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

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
    app.state.drain = gateway.drain
    app.state.toggle_hold = gateway.dispatcher.toggle_hold
    _add_routes(app, gateway)
    _add_middleware(app, gateway)
    return app


def _add_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add all routes; the last one takes every path that is left."""
    store, clock, metrics = gateway.store, gateway.clock, gateway.metrics
    admission, dispatcher, events = gateway.admission, gateway.dispatcher, gateway.events
    settings = gateway.settings
    limit, offer = settings.body_limit_bytes, Offer.of(settings)
    watching = Watching(store, dispatcher, events)
    waiter = run.Waiter(watching, dispatcher, cancel_on_disconnect=settings.cancel_on_disconnect)
    conversations = Parts(
        settings=settings,
        admission=admission,
        watching=watching,
        keys=gateway.keys,
        sockets=OpenSockets(settings.sockets_per_key),
    )
    for router in (
        health.make_router(
            settings, store, dispatcher, metrics, clock, gateway.keys, gateway.checker
        ),
        openapi.make_router(offer),
        jwks.make_router(gateway.signer),
        files.make_router(store, gateway.files, metrics, clock),
        UploadRoutes(gateway.uploads, gateway.tickets).router,
        models.ModelRoutes(offer, dispatcher).router,
        requests.RequestRoutes(store, gateway.files, clock).router,
        queue.QueueRoutes(store, admission, dispatcher, events, limit).router,
        tokens.make_router(gateway.tickets),
        ImageRoutes(admission, waiter, offer, limit).router,
        stream.StreamRoutes(admission, watching, limit).router,
        carried.make_router(conversations),
        realtime.make_router(conversations),
        run.make_router(admission, waiter, body_limit_bytes=limit),
    ):
        app.include_router(router)


def _add_middleware(app: FastAPI, gateway: Gateway) -> None:
    """Last added is outermost. CORS is outside what refuses, so that a page can read why.

    Only a page that may not call, or calls by a name that is not ours, shall read nothing.
    """
    settings, keys = gateway.settings, gateway.keys
    app.add_middleware(AuthMiddleware, gate=Gate(keys, gateway.clock), tickets=gateway.tickets)
    app.add_middleware(OpenAIErrorsMiddleware)
    app.add_middleware(DoorMiddleware, public_url=settings.public_url)
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=".*",
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(
        OriginMiddleware,
        allowed=AllowedOrigins.parse(settings.origins),
        has_keys=lambda: keys.has_keys,
    )
    app.add_middleware(HostMiddleware, names=OwnNames.of(settings))
    app.add_middleware(RequestIdMiddleware)


async def _handle_http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    return error_response(RequestError(error.status_code, error.detail), headers)
