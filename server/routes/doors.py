"""Which door a request came in by, and what every answer gets on its way out.

fal's hosts share their paths, so something else has to tell them apart: a prefix, the host name,
or the target URL that the proxy mode of fal's clients sends along. All three become one canonical
path here, `/queue/...` for the queue, `/rest/...` for the REST API, `/ws/...` for HTTP over
websockets and none for the synchronous and the file hosts, and everything behind this middleware
knows only that.
"""

import re
import uuid
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RequestError
from server.hosts import FAL_HOSTS, FILES_HOST, QUEUE_HOST, Role, role_of, split_port
from server.routes.answers import error_response

log = structlog.get_logger(__name__)

PROXY_PATH = "/api/fal/proxy"
TARGET_HEADER = "x-fal-target-url"
REQUEST_ID_HEADER = "x-fal-request-id"
QUEUE_PREFIX = "/queue"
RUN_PREFIX = "/run"
REST_PREFIX = "/rest"
WS_PREFIX = "/ws"
PLAIN_PREFIXES = ("/files/", "/uploads/", "/api/", "/health/", "/.well-known/")
PLAIN_PATHS = ("/health", "/openapi.json")
"""What means the same on every host: files, documents, probes."""

RESPONSE_STARTS = ("http.response.start", "websocket.http.response.start")
"""How an answer of HTTP begins; a websocket that is not accepted has one too."""


@dataclass(frozen=True, slots=True)
class Door:
    """How the caller reaches this server: `files_origin` serves files, `queue_url` the queue."""

    files_origin: str
    queue_url: str


class RequestIdMiddleware:
    """Puts a fresh request id on every answer that has none of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and mark the answer; on a websocket each of many requests has its own id."""

        async def send_with_id(message: Message) -> None:
            if message["type"] in RESPONSE_STARTS:
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, str(uuid.uuid4()))
            await send(message)

        await self._app(scope, receive, send_with_id)


class DoorMiddleware:
    """Makes the path canonical, notes the door, and answers for whatever escapes the app."""

    def __init__(self, app: ASGIApp, public_url: str | None = None) -> None:
        self._app = app
        self._public_url = public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rewrite the scope of a request or a websocket and pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] in (*RESPONSE_STARTS, "websocket.accept")
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
        host = headers.get("host") or _local_host(scope)
        path, query = scope["path"], scope["query_string"]
        name, port = split_port(host) or (host, "")
        role = role_of(name)
        scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
        door = self._door(scheme, host, name, port)
        if TARGET_HEADER in headers or path.rstrip("/") == PROXY_PATH:
            path, query, role = _read_target(headers.get(TARGET_HEADER))
        if role is Role.WS and scope["type"] == "http":
            role = Role.RUN
        path = _canonical_path("/" + re.sub(r"/{2,}", "/", path).strip("/"), role)
        state = {**scope.get("state", {}), "door": door}
        raw_path = path.encode("utf-8")
        return {**scope, "path": path, "raw_path": raw_path, "query_string": query, "state": state}

    def _door(self, scheme: str, host: str, name: str, port: str) -> Door:
        """Note where answers point to: back to where the caller came from, in fal's own names."""
        if self._public_url:
            return Door(self._public_url, self._public_url + QUEUE_PREFIX)
        origin = f"{scheme}://{host}"
        if name in FAL_HOSTS:
            return Door(f"{scheme}://{FILES_HOST}{port}", f"{scheme}://{QUEUE_HOST}{port}")
        is_queue = role_of(name) is Role.QUEUE
        return Door(origin, origin if is_queue else origin + QUEUE_PREFIX)


def door_of(request: HTTPConnection) -> Door:
    """Return the door that the middleware noted."""
    door = request.state.door
    if not isinstance(door, Door):
        raise TypeError("the request did not come through DoorMiddleware")
    return door


def _canonical_path(path: str, role: Role) -> str:
    """Put what a host stands for in front of a path, unless the path says it already.

    Raises `RequestError` 404 for anything but files on a host that serves files: nothing is made
    there, and fal's names for it are the ones that browsers meet.
    """
    if path in PLAIN_PATHS or path.startswith(PLAIN_PREFIXES):
        return path
    if role is Role.FILES:
        raise RequestError(404, "Not Found")
    if path == RUN_PREFIX or path.startswith(RUN_PREFIX + "/"):
        return path.removeprefix(RUN_PREFIX) or "/"
    prefixes = (QUEUE_PREFIX + "/", REST_PREFIX + "/", WS_PREFIX + "/")
    if role is Role.RUN or path.startswith(prefixes):
        return path
    return f"/{role}{path}"


def _local_host(scope: Scope) -> str:
    """Return where a request without a Host, of HTTP/1.0, arrived."""
    address, port = scope.get("server") or ("localhost", None)
    name = f"[{address}]" if ":" in address else address
    return f"{name}:{port}" if port else name


def _read_target(target: str | None) -> tuple[str, bytes, Role]:
    """Split the proxy protocol's target URL into path, query, and what its host is for.

    Only fal's own hosts are accepted, as fal's own proxy does; nothing is ever forwarded.
    """
    try:
        parts = urlsplit(target or "")
        host = (parts.hostname or "").removesuffix(".")
    except ValueError:
        host = ""
    if host not in FAL_HOSTS:
        raise RequestError(400, "Invalid request: x-fal-target-url must be a URL of fal")
    # As uvicorn does with the request's own: the path decoded, the query as it came.
    return unquote(parts.path), parts.query.encode("latin-1"), FAL_HOSTS[host]
