"""Which door a request came in by, and what every answer gets on its way out.

fal's queue and its synchronous host share their paths, so something else has to tell them
apart: a `/queue` prefix, a `queue.` host, or the target URL that the JavaScript client's proxy
mode sends along. All three become one canonical path here, `/queue/...` for the queue, and
everything behind this middleware knows only that.
"""

import re
import uuid
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RequestError
from server.routes.answers import error_response

log = structlog.get_logger(__name__)

PROXY_PATH = "/api/fal/proxy"
TARGET_HEADER = "x-fal-target-url"
REQUEST_ID_HEADER = "x-fal-request-id"
QUEUE_PREFIX = "/queue"
RUN_PREFIX = "/run"
QUEUE_HOST_PREFIX = "queue."
FAL_HOST = re.compile(r"(^|\.)(fal\.run|falrun\.com|fal\.ai|fal\.media)$")


@dataclass(frozen=True, slots=True)
class Door:
    """How the caller reaches this server: `origin` serves files, `queue_url` the queue."""

    origin: str
    queue_url: str


class RequestIdMiddleware:
    """Puts a fresh request id on every answer that has none of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on and mark its answer; leave everything else alone."""

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, str(uuid.uuid4()))
            await send(message)

        await self._app(scope, receive, send_with_id if scope["type"] == "http" else send)


class DoorMiddleware:
    """Makes the path canonical, notes the door, and answers for whatever escapes the app."""

    def __init__(self, app: ASGIApp, public_url: str | None = None) -> None:
        self._app = app
        self._public_url = public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rewrite the scope of an HTTP request and pass it on; leave everything else alone."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(self._enter(scope), receive, watched_send)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
        except Exception:
            log.exception("unhandled error", path=scope["path"])
            if started:
                raise
            fault = RequestError(500, "Internal Server Error", "internal_error")
            await error_response(fault)(scope, receive, send)

    def _enter(self, scope: Scope) -> Scope:
        headers = Headers(scope=scope)
        host = headers.get("host") or "localhost"
        path, query = scope["path"], scope["query_string"]
        by_host = host.lower().startswith(QUEUE_HOST_PREFIX)
        if path.rstrip("/") == PROXY_PATH:
            path, query, to_queue = _read_target(headers.get(TARGET_HEADER))
            by_host = False
        else:
            to_queue = by_host
        path = "/" + re.sub(r"/{2,}", "/", path).strip("/")
        if path == RUN_PREFIX or path.startswith(RUN_PREFIX + "/"):
            path = path.removeprefix(RUN_PREFIX) or "/"
        elif to_queue and not _is_common(path):
            path = QUEUE_PREFIX + path
        origin = self._public_url or f"{scope['scheme']}://{host}"
        queue_url = origin if by_host and not self._public_url else origin + QUEUE_PREFIX
        state = {**scope.get("state", {}), "door": Door(origin, queue_url)}
        raw_path = path.encode("utf-8")
        return {**scope, "path": path, "raw_path": raw_path, "query_string": query, "state": state}


def door_of(request: Request) -> Door:
    """Return the door that the middleware noted."""
    door = request.state.door
    if not isinstance(door, Door):
        raise TypeError("the request did not come through DoorMiddleware")
    return door


def _read_target(target: str | None) -> tuple[str, bytes, bool]:
    """Split the proxy protocol's target URL into path, query, and whether it is the queue.

    Only fal's own hosts are accepted, as fal's own proxy does; nothing is ever forwarded.
    """
    try:
        parts = urlsplit(target or "")
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not FAL_HOST.search(host):
        raise RequestError(400, "Invalid request: x-fal-target-url must be a URL of fal")
    return parts.path, parts.query.encode("utf-8"), host.startswith(QUEUE_HOST_PREFIX)


def _is_common(path: str) -> bool:
    """Say whether the path means the same on every host: files, documents, health checks."""
    return path.startswith((QUEUE_PREFIX + "/", "/files/", "/api/", "/health"))
