"""Which door a request came in by, and what every answer gets on its way out.

fal's hosts share their paths, so something else has to tell them apart: a prefix, the host name,
or the target URL that the proxy mode of fal's clients sends along. All three become one canonical
path here, `/queue/...` for the queue, `/rest/...` for the REST API and none for the synchronous
and the file hosts, and everything behind this middleware knows only that.
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
from server.hosts import FAL_HOSTS, FILES_HOST, QUEUE_HOST, Role, role_of
from server.routes.answers import error_response

log = structlog.get_logger(__name__)

PROXY_PATH = "/api/fal/proxy"
TARGET_HEADER = "x-fal-target-url"
REQUEST_ID_HEADER = "x-fal-request-id"
QUEUE_PREFIX = "/queue"
RUN_PREFIX = "/run"
REST_PREFIX = "/rest"
COMMON_PREFIXES = (
    QUEUE_PREFIX + "/",
    REST_PREFIX + "/",
    "/files/",
    "/uploads/",
    "/api/",
    "/health",
    "/.well-known/",
)
"""What means the same on every host: prefixes, files, documents, probes."""


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
        role = host_role = role_of(_split_port(host)[0])
        if TARGET_HEADER in headers or path.rstrip("/") == PROXY_PATH:
            path, query, role = _read_target(headers.get(TARGET_HEADER))
        path = "/" + re.sub(r"/{2,}", "/", path).strip("/")
        if path == RUN_PREFIX or path.startswith(RUN_PREFIX + "/"):
            path = path.removeprefix(RUN_PREFIX) or "/"
        elif role in (Role.QUEUE, Role.REST) and not path.startswith(COMMON_PREFIXES):
            path = f"/{role}{path}"
        door = self._door(scope["scheme"], host, host_role)
        state = {**scope.get("state", {}), "door": door}
        raw_path = path.encode("utf-8")
        return {**scope, "path": path, "raw_path": raw_path, "query_string": query, "state": state}

    def _door(self, scheme: str, host: str, role: Role) -> Door:
        """Note where answers point to: back to where the caller came from, in fal's own names."""
        if self._public_url:
            return Door(self._public_url, self._public_url + QUEUE_PREFIX)
        name, port = _split_port(host)
        origin = f"{scheme}://{host}"
        if name in FAL_HOSTS:
            return Door(f"{scheme}://{FILES_HOST}{port}", f"{scheme}://{QUEUE_HOST}{port}")
        return Door(origin, origin if role is Role.QUEUE else origin + QUEUE_PREFIX)


def door_of(request: Request) -> Door:
    """Return the door that the middleware noted."""
    door = request.state.door
    if not isinstance(door, Door):
        raise TypeError("the request did not come through DoorMiddleware")
    return door


def _split_port(host: str) -> tuple[str, str]:
    """Split a `Host` header into its name, in lower case, and `:port` or nothing."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or port.endswith("]"):  # no port, or the last colon of an IPv6 address
        return host.lower().removesuffix("."), ""
    return name.removesuffix("."), f":{port}"


def _read_target(target: str | None) -> tuple[str, bytes, Role]:
    """Split the proxy protocol's target URL into path, query, and what its host is for.

    Only fal's own hosts are accepted, as fal's own proxy does; nothing is ever forwarded.
    """
    try:
        parts = urlsplit(target or "")
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if host not in FAL_HOSTS:
        raise RequestError(400, "Invalid request: x-fal-target-url must be a URL of fal")
    return parts.path, parts.query.encode("utf-8"), FAL_HOSTS[host]
