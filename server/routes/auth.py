"""Who may ask: one key for everybody, checked before method and path, as fal does."""

import hmac

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import RequestError
from server.keys import Caller
from server.routes.answers import error_response
from server.routes.doors import QUEUE_PREFIX

OPEN_PREFIXES = ("/health", "/files/", "/api/openapi/", "/openapi.json", "/.well-known/")
"""Open without a key: probes, documents, public keys, and files, whose names are secrets."""


def caller_of(request: Request) -> Caller:
    """Return who sent the request, as the middleware found."""
    caller = request.state.caller
    if not isinstance(caller, Caller):
        raise TypeError("the request did not come through AuthMiddleware")
    return caller


class AuthMiddleware:
    """Lets a request through when it carries the key, or when there is no key to carry."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 in fal's words, or pass the request on."""
        if scope["type"] == "http" and self._api_key and scope["method"] != "OPTIONS":
            error = self._check(scope["path"], Headers(scope=scope).get("authorization"))
            if error:
                await error_response(error)(scope, receive, send)
                return
        if scope["type"] == "http":
            scope = {**scope, "state": {**scope.get("state", {}), "caller": Caller()}}
        await self._app(scope, receive, send)

    def _check(self, path: str, authorization: str | None) -> RequestError | None:
        if path.startswith(OPEN_PREFIXES):
            return None
        scheme, _, key = (authorization or "").partition(" ")
        known_scheme = scheme.lower() in ("key", "bearer")
        expected = (self._api_key or "").encode("utf-8")
        if known_scheme and hmac.compare_digest(key.strip().encode("utf-8"), expected):
            return None
        if scheme.lower() == "key" and ":" not in key:
            return RequestError(
                401,
                "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'.",
            )
        segments = path.removeprefix(QUEUE_PREFIX).strip("/").split("/")
        if "requests" in segments and authorization:
            return RequestError(401, "invalid key credentials")
        app_id = "/".join(segments[:2])
        return RequestError(
            401,
            f'Cannot access application "{app_id}". '
            "Authentication is required to access this application.",
        )
