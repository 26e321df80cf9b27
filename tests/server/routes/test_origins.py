"""Host and Origin: who passes, who does not, and that refusals come in fal's shape."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.errors import ConfigurationError
from server.names import OwnNames
from server.routes.origins import AllowedOrigins, HostMiddleware, OriginMiddleware
from server.settings import Settings

LIVE = "/health/live"


def make_client(folder: Path, **changes: Any) -> TestClient:
    """Return a client of the real app, with all its middleware; nothing of it is started."""
    settings = Settings(**{"data_dir": folder, "model": folder, "safety": "off", **changes})
    return TestClient(create_app(settings), base_url="http://localhost:8000")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """Return a client of a server without keys and without TLS, which has names of all kinds."""
    return make_client(
        tmp_path_factory.mktemp("data"),
        tls_port=None,
        host="10.1.2.3",
        allow_anonymous=True,
        tls_names=("box.example", "*.wild.example"),
        public_url="https://images.example",
        origins=(
            *("localhost", "https://app.example:8443", "https://plain.example/", "Tools.Example"),
        ),
    )


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.:8000",
        "127.0.0.1:8000",
        "[::1]:8443",
        "queue.fal.run",
        "v3b.fal.media:443",
        "box.example:1",
        "a.wild.example",
        "10.1.2.3",
        "images.example",
    ],
)
def test_own_names_pass_with_any_port(box: TestClient, host: str) -> None:
    """Names of the machine, of fal and of the settings; a port may have been redirected."""
    assert box.get(LIVE, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "evil.example#localhost",
        "user@localhost",
        "localhost:port",
        "localhost:8000:8000",
        "localhost/",
        "localhost evil",
        "127.1",
        "2130706433",
        "0.0.0.0:8000",
        "[::ffff:127.0.0.1]",
        "[::1",
        "::1",
        "fal.ai",
    ],
)
def test_other_hosts_are_400(box: TestClient, host: str) -> None:
    """A name that was made to lead here gets nothing, not even a preflight or a probe."""
    wish = {"origin": "http://localhost", "access-control-request-method": "POST"}
    for answer in (
        box.get(LIVE, headers={"host": host}),
        box.options("/fal-ai/flux-2", headers={"host": host, **wish}),
    ):
        assert answer.status_code == 400
        assert "FLUX2_TLS_NAMES" in answer.json()["detail"]
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["x-fal-request-id"]


async def send(app: Any, version: str, *headers: tuple[bytes, bytes]) -> int:
    """Send a bare request, as no client library would, and return the status."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def note(message: Any) -> None:
        statuses.append(message.get("status", 0))

    scope = {"type": "http", "method": "GET", "scheme": "http", "http_version": version}
    await app({**scope, "path": LIVE, "query_string": b"", "headers": list(headers)}, receive, note)
    return statuses[0]


async def passed(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer 204 to what was let through."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.anyio
async def test_only_old_http_may_come_without_a_host() -> None:
    """Probes of load balancers speak HTTP/1.0; two Hosts are none, whichever is ours."""
    app = HostMiddleware(passed, OwnNames(lambda: ["localhost"]))
    good, bad = (b"host", b"localhost"), (b"host", b"evil.example")
    assert await send(app, "1.0") == 204
    assert await send(app, "1.0", bad) == 400
    assert await send(app, "1.1") == 400
    assert await send(app, "1.1", good) == 204
    assert await send(app, "1.1", good, bad) == 400


@pytest.mark.anyio
async def test_each_of_several_origins_must_be_allowed() -> None:
    """A second header cannot hide behind a good first one."""
    app = OriginMiddleware(passed, AllowedOrigins.parse(["localhost"]), lambda: False)
    good, bad = (b"origin", b"http://localhost"), (b"origin", b"https://evil.example")
    assert await send(app, "1.1", good) == 204
    assert await send(app, "1.1", good, bad) == 403


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost", True),
        ("https://localhost:5173", True),
        ("http://127.0.0.1:3000", True),
        ("http://[::1]:3000", True),
        ("http://box.example:8000", True),  # the Host of the request
        ("http://box.example:9000", False),
        ("https://app.example:8443", True),
        ("https://APP.example:8443", True),
        ("https://app.example", False),
        ("http://app.example:8443", False),
        ("https://plain.example", True),
        ("https://plain.example:443", True),
        ("http://tools.example:1234", True),
        ("null", False),
        ("", False),
        ("https://evil.example", False),
        ("https://localhost.evil.example", False),
        ("https://localhost@evil.example", False),
        ("https://evil.example/localhost", False),
        ("box.example:8000", False),
        ("://box.example:8000", False),
    ],
)
def test_without_keys_only_known_pages_pass(
    box: TestClient, origin: str | None, allowed: bool
) -> None:
    """Requests and preflights alike: 403 in fal's shape, or the answer the page may read."""
    headers = {"host": "box.example:8000"} | ({} if origin is None else {"origin": origin})
    wish = {"access-control-request-method": "POST"}
    got, preflight = (
        box.get(LIVE, headers=headers),
        box.options("/fal-ai/flux-2", headers={**headers, **wish}),
    )
    for answer in (got, preflight):
        assert (answer.status_code != 403) is allowed
        assert "access-control-allow-credentials" not in answer.headers
        if not allowed:
            assert "FLUX2_ORIGINS" in answer.json()["detail"]
            assert "access-control-allow-origin" not in answer.headers
        elif origin is not None:
            assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_with_a_key_every_page_may_ask(tmp_path: Path, origin: str) -> None:
    """The key is what protects then; cookies never count."""
    box = make_client(tmp_path, api_key="id:secret")
    preflight = box.options(
        "/fal-ai/flux-2",
        headers={
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
            "access-control-request-private-network": "true",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-private-network"] == "true"
    refused = box.post("/fal-ai/flux-2", json={}, headers={"origin": origin})
    assert refused.status_code == 401
    for answer in (preflight, refused):
        assert answer.headers["access-control-allow-origin"] in ("*", origin)
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("entry", ["*", "*.example", "https://*.example", "https://", "a b", "x/y"])
def test_entries_that_mean_nothing_are_refused(entry: str) -> None:
    """A mistyped origin would otherwise be found by a page that does not work."""
    with pytest.raises(ConfigurationError, match=r"FLUX2_ORIGINS|neither a host name"):
        AllowedOrigins.parse([entry])


def test_a_wrong_entry_is_told_at_start(tmp_path: Path) -> None:
    """Not by the first request, which the operator may never see."""
    with pytest.raises(ConfigurationError, match="FLUX2_ORIGINS"):
        make_client(tmp_path, origins=("*",))
