"""Who may ask, checked before method and path, as fal does: a key, or a token for one application.

A token (`?fal_jwt_token=`) is looked at where no key is sent. It opens the realtime websockets and
the streams of its applications: again and again until it expires, as fal's clients reconnect with
the one that they have. It is judged when a connection begins; one that is open stays open, because
fal's JavaScript client gets a new token beside it and does not connect anew. A key that is revoked
or replaced takes its tokens with it.
"""

import contextlib
import hashlib
import ipaddress
import math
from functools import partial
from urllib.parse import parse_qs

import structlog
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.clock import Clock
from server.errors import RequestError
from server.jobs import app_id_of
from server.keys import Caller, Keyring
from server.limiter import TokenBuckets
from server.routes.answers import error_response
from server.routes.doors import QUEUE_PREFIX, REST_PREFIX, WS_PREFIX
from server.routes.messages import UNAUTHORIZED_CODE, unauthorized_message
from server.routes.paths import find_realtime, find_streamed
from server.tickets import Tickets

log = structlog.get_logger(__name__)

OPEN_PATHS = ("/health", "/openapi.json")
OPEN_PREFIXES = ("/health/", "/files/", "/uploads/", "/api/openapi/", "/.well-known/")
"""Open without a key: probes, documents and public keys; files and uploads, whose routes decide."""

PLATFORM_PREFIX = "/v1/"
KEYED_ONLY_PREFIXES = (REST_PREFIX + "/", PLATFORM_PREFIX)
"""fal's REST and platform interfaces, which belong to no application."""

FAILURES_PER_MINUTE = 20
"""Of one address; enough for a typing error, too few to guess even a weak key."""

IPV6_NETWORK_BITS = 64
"""One household or machine has all addresses of such a network."""


TOKEN_PARAMETER = "fal_jwt_token"  # noqa: S105  (the name of the parameter)


def caller_of(request: HTTPConnection) -> Caller:
    """Return who sent a request to a closed path, as the middleware found."""
    caller = request.state.caller
    if not isinstance(caller, Caller):
        raise TypeError("the request did not come through AuthMiddleware")
    return caller


def has_only_token(request: HTTPConnection) -> bool:
    """Tell whether the caller of a closed path showed a token in the place of the key."""
    return bool(request.state.has_only_token)


def caller_or_none(request: Request) -> Caller | None:
    """Return who sent a request to an open path, None for somebody without a valid key.

    Without any key configured everybody is the box's own account. Raises `RequestError` 429 as
    the middleware answers it on closed paths.
    """
    caller: Caller | None = request.state.identify()
    return caller


class Gate:
    """Recognises callers by their keys and slows down who tries many."""

    def __init__(self, keys: Keyring, clock: Clock) -> None:
        self._keys = keys
        self._failures = TokenBuckets(clock)
        self._proven: set[bytes] = set()

    def identify(self, address: str, authorization: str | None) -> Caller | None:
        """Return the caller, or None when there is no key among the headers or a wrong one.

        After too many failures from an address only credentials that were right before are
        looked at: no guess gets through, and a stray script behind the same address stops none
        of those who work there. Raises `RequestError` 429 for all others.
        """
        if not self._keys.has_keys:
            return Caller()
        credential = _credential(authorization)
        if credential is None:
            return None
        digest = hashlib.sha256(credential.encode("utf-8")).digest()
        seconds = self._failures.wait_seconds(address, FAILURES_PER_MINUTE)
        if seconds and digest not in self._proven:
            raise RequestError(
                429,
                "Too many failed attempts to authenticate from this address",
                headers={"retry-after": str(math.ceil(seconds))},
            )
        caller = self._keys.verify(credential)
        if caller:
            self._proven.add(digest)
        elif not self._failures.take(address, FAILURES_PER_MINUTE):
            log.warning("key refused", address=address, reason=self._keys.explain(credential))
        return caller


class AuthMiddleware:
    """Lets through who has a key or a token, what asks for an open path, and all without keys."""

    def __init__(self, app: ASGIApp, gate: Gate, tickets: Tickets) -> None:
        self._app = app
        self._gate = gate
        self._tickets = tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 in fal's words, or pass the request on with its caller."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        # On an open path the route asks when it wants to know: what it gets may be a ticket, and
        # would count as a failed attempt here.
        identify = partial(self._gate.identify, _address(scope), authorization)
        state = {**scope.get("state", {}), "identify": identify}
        if scope["type"] == "websocket" or not (
            scope["method"] == "OPTIONS" or _is_open(scope["path"])
        ):
            token = None if authorization else _token(scope)
            try:
                caller = identify()
                state["has_only_token"] = caller is None
                if caller is None and token is not None:
                    caller = self._tickets.read_app_token(token, _app_id(scope))
                if caller is None:
                    raise unauthorized(scope["path"], authorization)
            except RequestError as error:
                if scope["type"] == "websocket" and token is not None:
                    await _refuse_token(receive, send)
                else:
                    await error_response(error)(scope, receive, send)
                return
            state["caller"] = caller
        await self._app({**scope, "state": state}, receive, send)


def _token(scope: Scope) -> str | None:
    values = parse_qs(scope["query_string"].decode("latin-1")).get(TOKEN_PARAMETER)
    return values[0] if values else None


def _app_id(scope: Scope) -> str:
    """Return the application that a token could open here; empty, as none is, where none could."""
    path = scope["path"]
    with contextlib.suppress(RequestError):
        if scope["type"] == "websocket":
            return app_id_of(find_realtime(path).id)
        if scope["method"] == "POST":
            return app_id_of(find_streamed(path).id)
    return ""


async def _refuse_token(receive: Receive, send: Send) -> None:
    """Refuse on an open websocket: from a refused one fal's JavaScript client would learn nothing.

    A page is not told why a websocket does not open, and the client would keep its old token for
    ever. On this message it lets go of it, and gets another before it connects again.
    """
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": unauthorized_message()})
    await send({"type": "websocket.close", "code": UNAUTHORIZED_CODE, "reason": "Unauthorized"})


def unauthorized(path: str, authorization: str | None) -> RequestError:
    """Make fal's 401 for a canonical path and what was, or was not, in the header."""
    scheme, _, credential = (authorization or "").partition(" ")
    if scheme.lower() == "key" and ":" not in credential:
        return RequestError(
            401, "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'."
        )
    segments = path.removeprefix(QUEUE_PREFIX).removeprefix(WS_PREFIX + "/").strip("/").split("/")
    belongs_to_no_app = path.startswith((*KEYED_ONLY_PREFIXES, *OPEN_PREFIXES))
    if authorization and (belongs_to_no_app or "requests" in segments):
        return RequestError(401, "invalid key credentials")
    if belongs_to_no_app:
        return RequestError(401, "Authorization header is required")
    app_id = "/".join(segments[:2])
    return RequestError(
        401,
        f'Cannot access application "{app_id}". '
        "Authentication is required to access this application.",
    )


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def _credential(authorization: str | None) -> str | None:
    scheme, _, credential = (authorization or "").partition(" ")
    return credential.strip() if scheme.lower() in ("key", "bearer") else None


def _address(scope: Scope) -> str:
    """Return whom failures are counted against: an IPv4 address, or a network of IPv6."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address), IPV6_NETWORK_BITS), strict=False))
    return host
