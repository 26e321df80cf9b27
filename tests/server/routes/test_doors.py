"""Doors: by prefix, by host, by target URL, always to the same canonical path."""

import json
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.routes.doors import Door, DoorMiddleware, RequestIdMiddleware

pytestmark = pytest.mark.anyio


async def answer_of(app: ASGIApp, **changes: Any) -> list[dict[str, Any]]:
    """Send an empty request, with `changes` to its scope, to the app; return what went out."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/a/b",
        "query_string": b"",
        "headers": [],
        **changes,
    }
    await app(scope, receive, send)
    return sent


async def enter(
    path: str,
    headers: dict[str, str] | None = None,
    *,
    scheme: str = "http",
    kind: str = "http",
    query: bytes = b"",
    public_url: str | None = None,
) -> tuple[Scope | None, list[dict[str, Any]]]:
    """Send a request through the middleware; return what the app saw and what went out."""
    seen: list[Scope] = []
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await Response("ok")(scope, receive, send)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "method": "POST",
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [
            (name.encode(), value.encode())
            for name, value in {"host": "box:8443", **(headers or {})}.items()
        ],
    }
    await DoorMiddleware(app, public_url)(scope, receive, send)
    return (seen[0] if seen else None), sent


QUEUE = "https://queue.fal.run"


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/fal-ai/flux-2", {}, "/fal-ai/flux-2"),
        ("//fal-ai/flux-2/", {}, "/fal-ai/flux-2"),
        ("/run/fal-ai/flux-2", {}, "/fal-ai/flux-2"),
        ("/queue/fal-ai/flux-2", {}, "/queue/fal-ai/flux-2"),
        ("/fal-ai/flux-2", {"host": "queue.fal.run"}, "/queue/fal-ai/flux-2"),
        ("/fal-ai/flux-2", {"host": "QUEUE.localhost:8443"}, "/queue/fal-ai/flux-2"),
        ("/queue/fal-ai/flux-2", {"host": "queue.fal.run"}, "/queue/fal-ai/flux-2"),
        ("/files/x.png", {"host": "queue.fal.run"}, "/files/x.png"),
        ("/health/live", {"host": "queue.fal.run"}, "/health/live"),
        ("/fal-ai/flux-2", {"host": "fal.run"}, "/fal-ai/flux-2"),
        ("/api/fal/proxy", {"x-fal-target-url": f"{QUEUE}/a/b"}, "/queue/a/b"),
        ("/api/fal/proxy/", {"x-fal-target-url": "https://fal.run/a/b/"}, "/a/b"),
        ("/any/path", {"x-fal-target-url": f"{QUEUE}/a/b"}, "/queue/a/b"),
        (
            "/api/fal/proxy",
            {"x-fal-target-url": "https://rest.fal.ai/storage/upload/initiate"},
            "/rest/storage/upload/initiate",
        ),
        ("/tokens/", {"host": "rest.alpha.fal.ai"}, "/rest/tokens"),
        ("/.well-known/jwks.json", {"host": "rest.fal.ai"}, "/.well-known/jwks.json"),
        ("/files/upload", {"host": "v3.fal.media"}, "/files/upload"),
        ("/files/x.png", {"host": "v3b.fal.media:8443"}, "/files/x.png"),
        ("/any/path", {"x-fal-target-url": "https://v3b.fal.media/files/x"}, "/files/x"),
        ("/any/path", {"x-fal-target-url": "https://QUEUE.fal.run./a/b"}, "/queue/a/b"),
        ("/any/path", {"x-fal-target-url": f"{QUEUE}/a/b%20c"}, "/queue/a/b c"),
        ("/a/b", {"host": "ws.fal.run"}, "/a/b"),
        ("/a/b", {"host": "queue.falrun.com"}, "/queue/a/b"),
        ("/healthy/b", {"host": "queue.fal.run"}, "/queue/healthy/b"),
        ("/health", {"host": "queue.fal.run"}, "/health"),
        ("/openapi.json", {"host": "rest.fal.ai"}, "/openapi.json"),
    ],
)
async def test_every_door_leads_to_one_path(
    path: str, headers: dict[str, str], expected: str
) -> None:
    """Prefix, host and target URL select the queue; slashes too many do no harm."""
    scope, _ = await enter(path, headers)
    assert scope is not None
    assert scope["path"] == expected


@pytest.mark.parametrize(
    ("path", "host", "expected"),
    [
        ("/a/b/realtime", "fal.run", "/a/b/realtime"),
        ("//a/b/realtime/", "box:8443", "/a/b/realtime"),
        ("/a/b", "ws.fal.run", "/ws/a/b"),
        ("/ws/a/b", "ws.fal.run", "/ws/a/b"),
        ("/ws/a/b", "box:8443", "/ws/a/b"),
        ("/a/b", "queue.fal.run", "/queue/a/b"),
        ("/health", "ws.fal.run", "/health"),
    ],
)
async def test_doors_of_websockets(path: str, host: str, expected: str) -> None:
    """One more host has a meaning, and what answers point to is for https all the same."""
    scope, _ = await enter(path, {"host": host}, kind="websocket", scheme="wss")
    assert scope is not None
    assert scope["path"] == expected
    assert scope["state"]["door"].files_origin.startswith("https://")


@pytest.mark.parametrize("path", ["/fal-ai/flux-2", "/queue/a/b", "/run/a/b", "/rest/tokens", "/"])
async def test_hosts_of_files_serve_files_only(path: str) -> None:
    """Neither by their name nor by a target URL do they lead to anything that makes images."""
    for headers in (
        {"host": "v3b.fal.media"},
        {"host": "V3.fal.media.:443"},
        {"x-fal-target-url": f"https://fal.media{path}"},
    ):
        scope, sent = await enter(path, headers)
        assert scope is None
        assert sent[0]["status"] == 404
        assert json.loads(sent[1]["body"]) == {"detail": "Not Found"}


async def test_the_target_s_query_is_used() -> None:
    """What the client appended to the target URL arrives as the request's own query."""
    headers = {"x-fal-target-url": f"{QUEUE}/a/b/requests/1/status?logs=1"}
    scope, _ = await enter("/api/fal/proxy", headers, query=b"ignored=1")
    assert scope is not None
    assert scope["query_string"] == b"logs=1"


@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "https://example.com/x",
        "https://fal.run.example.com/x",
        "https://notfal.run/x",
        "http://[",
        "queue.fal.run/x",
    ],
)
async def test_other_targets_are_refused(target: str | None) -> None:
    """The proxy path is no proxy: only fal's own URLs mean anything here."""
    headers = {} if target is None else {"x-fal-target-url": target}
    scope, sent = await enter("/api/fal/proxy", headers)
    assert scope is None
    assert sent[0]["status"] == 400


@pytest.mark.parametrize(
    ("headers", "scheme", "public_url", "expected"),
    [
        ({}, "https", None, Door("https://box:8443", "https://box:8443/queue")),
        (
            {"host": "queue.fal.run"},
            "https",
            None,
            Door("https://v3b.fal.media", "https://queue.fal.run"),
        ),
        (
            {"host": "fal.run:8443"},
            "https",
            None,
            Door("https://v3b.fal.media:8443", "https://queue.fal.run:8443"),
        ),
        (
            {"host": "[::1]:8000"},
            "http",
            None,
            Door("http://[::1]:8000", "http://[::1]:8000/queue"),
        ),
        (
            {"host": "box:8443", "x-forwarded-proto": "http", "x-forwarded-host": "evil.example"},
            "https",
            None,
            Door("https://box:8443", "https://box:8443/queue"),
        ),
        (
            {"host": "box:8443", "x-fal-target-url": f"{QUEUE}/a/b"},
            "https",
            None,
            Door("https://box:8443", "https://box:8443/queue"),
        ),
        (
            {"host": "queue.fal.run"},
            "http",
            "https://images.example",
            Door("https://images.example", "https://images.example/queue"),
        ),
    ],
)
async def test_answers_use_the_caller_s_own_door(
    headers: dict[str, str], scheme: str, public_url: str | None, expected: Door
) -> None:
    """URLs in answers have the scheme and host the caller used, unless the operator set them."""
    scope, _ = await enter("/a/b", headers, scheme=scheme, public_url=public_url)
    assert scope is not None
    assert scope["state"]["door"] == expected


@pytest.mark.parametrize(
    ("server", "origin"),
    [
        (("10.1.2.3", 8000), "http://10.1.2.3:8000"),
        (("fd00::2", 8000), "http://[fd00::2]:8000"),
        (None, "http://localhost"),
    ],
)
async def test_without_a_host_answers_point_to_where_the_request_arrived(
    server: tuple[str, int] | None, origin: str
) -> None:
    """HTTP/1.0 may leave Host out; the URLs should work all the same."""
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await Response("ok")(scope, receive, send)

    await answer_of(DoorMiddleware(app), server=server)
    assert seen[0]["state"]["door"] == Door(origin, f"{origin}/queue")


async def test_every_answer_has_a_request_id() -> None:
    """An answer without an id of its own gets a fresh one."""
    ids = set()
    for _ in range(2):
        sent = await answer_of(RequestIdMiddleware(Response("ok")))
        ids.add(dict(sent[0]["headers"])[b"x-fal-request-id"])
    assert len(ids) == 2
    own = RequestIdMiddleware(Response("ok", headers={"x-fal-request-id": "mine"}))
    assert dict((await answer_of(own))[0]["headers"])[b"x-fal-request-id"] == b"mine"


async def test_what_escapes_the_app_is_a_500_in_fal_s_shape() -> None:
    """A fault of ours is told without its details, by an answer like any other."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ValueError("/secret/path")

    sent = await answer_of(DoorMiddleware(app))
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {
        "detail": "Internal Server Error",
        "error_type": "internal_error",
    }


async def test_other_protocols_pass_untouched() -> None:
    """Lifespan and websocket scopes are none of its business."""
    seen: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def receive() -> dict[str, Any]:
        return {}

    async def send(_message: Any) -> None:
        return None

    scope = {"type": "lifespan"}
    await DoorMiddleware(app)(scope, receive, send)
    assert seen[0] is scope
