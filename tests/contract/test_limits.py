"""A server with a key, a small body limit, and short-lived `sync_mode` results; no https."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    SMALL_INPUTS,
    Api,
    check_image,
    connect,
    poll_until,
)

FLUX, FLEX = "fal-ai/flux-2", "fal-ai/flux-2-flex"
KEY = "name:secret"
LIMIT_BYTES = 32 * 1024
NO_ACCESS = (
    'Cannot access application "fal-ai/flux-2". '
    "Authentication is required to access this application."
)
MALFORMED = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'."
KEPT = f"/queue/{FLUX}/requests/00000000-0000-4000-8000-000000000000"
EDIT = "fal-ai/flux-2/flash/edit"


@pytest.fixture(scope="module")
def guarded(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return such a server."""
    server = start_server(
        tmp_path_factory.mktemp("guarded"),
        FLUX2_API_KEY=KEY,
        FLUX2_BODY_LIMIT_BYTES=str(LIMIT_BYTES),
        FLUX2_SYNC_RESULT_SECONDS="3",
        FLUX2_SWEEP_SECONDS="0.2",
        FLUX2_TLS_PORT="none",
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def keyless(guarded: RunningServer) -> Iterator[Api]:
    """Return plain calls on it that carry no key."""
    with connect(guarded) as http:
        yield Api(http)


@pytest.fixture(scope="module")
def keyed(guarded: RunningServer) -> Iterator[Api]:
    """Return plain calls on it that carry the key."""
    with connect(guarded, authorization=f"Key {KEY}") as http:
        yield Api(http)


def test_tls_can_be_switched_off(guarded: RunningServer) -> None:
    """There is no https port then, and no certificate is made."""
    assert guarded.https == ""
    assert not [line for line in guarded.lines if "https://" in line]
    assert not guarded.ca_path.exists()


@pytest.mark.parametrize(
    ("method", "path", "authorization", "detail"),
    [
        ("POST", f"/{FLUX}", None, NO_ACCESS),
        ("POST", f"/{FLUX}", "Key name:wrong", NO_ACCESS),
        ("POST", f"/{FLUX}", "Bearer wrong", NO_ACCESS),
        ("POST", f"/{FLUX}", "Basic bmFtZTpzZWNyZXQ=", NO_ACCESS),
        ("POST", f"/{FLUX}", "Key wrong", MALFORMED),
        ("POST", f"/{EDIT}", None, NO_ACCESS),
        ("GET", f"/{EDIT}", None, NO_ACCESS),
        ("POST", f"/queue/{FLUX}", None, NO_ACCESS),
        ("POST", f"/queue/{FLUX}", "Key name:wrong", NO_ACCESS),
        ("POST", f"/run/{FLUX}", None, NO_ACCESS),
        ("GET", f"{KEPT}/status", None, NO_ACCESS),
        ("GET", f"{KEPT}/status", "Key name:wrong", "invalid key credentials"),
        ("GET", f"{KEPT}/status", "Key wrong", MALFORMED),
        ("GET", KEPT, "Key name:wrong", "invalid key credentials"),
        ("PUT", f"{KEPT}/cancel", "Key name:wrong", "invalid key credentials"),
        ("POST", "/fal-ai/no-such/model", None, NO_ACCESS.replace("flux-2", "no-such")),
    ],
)
def test_refused_key(
    keyless: Api, method: str, path: str, authorization: str | None, detail: str
) -> None:
    """401 in fal's words, before method, path and body are looked at."""
    headers = {"authorization": authorization} if authorization else {}
    answer = keyless.http.request(method, path, content=b"not JSON", headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"detail": detail})
    assert answer.headers["x-fal-request-id"]


def test_refused_key_through_the_other_doors(keyless: Api) -> None:
    """A host name or a target URL is no way around the key."""
    target = {"x-fal-target-url": f"https://queue.fal.run/{FLUX}"}
    for path, headers in (("/api/fal/proxy", target), (f"/{FLUX}", {"host": "queue.fal.run"})):
        answer = keyless.http.post(path, json={}, headers=headers)
        assert (answer.status_code, answer.json()) == (401, {"detail": NO_ACCESS})


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", f"/api/openapi/queue/openapi.json?endpoint_id={FLUX}"]
)
def test_open_without_a_key(keyless: Api, path: str) -> None:
    """Probes and documents need none."""
    assert keyless.http.get(path).status_code == 200


@pytest.mark.parametrize("authorization", [f"Key {KEY}", f"Bearer {KEY}", f"key {KEY}"])
def test_accepted_key(keyless: Api, authorization: str) -> None:
    """The key opens the door, and behind it the body is looked at."""
    answer = keyless.http.post(f"/{FLUX}", json={}, headers={"authorization": authorization})
    assert answer.status_code == 422


def test_request_with_a_key(keyed: Api, keyless: Api) -> None:
    """The queue works with it; the file of the answer needs none, its name is the secret."""
    kept = keyed.submit(FLEX, SMALL_INPUTS[FLEX])
    keyed.wait(kept)
    (image,) = keyed.result(kept).json()["images"]
    check_image(keyless, image, (512, 512), "png")
    assert keyless.result(kept).status_code == 401


def make_body(size_bytes: int) -> bytes:
    """Return a JSON object of exactly this size."""
    frame = b'{"padding": ""}'
    return frame[:-2] + b"x" * (size_bytes - len(frame)) + frame[-2:]


@pytest.mark.parametrize("path", [f"/{FLUX}", f"/queue/{FLUX}"])
def test_body_at_the_limit(keyed: Api, path: str) -> None:
    """It is read, and one byte more is a 413, whether or not the length was announced."""
    assert keyed.http.post(path, content=make_body(LIMIT_BYTES)).status_code in (200, 422)
    body = make_body(LIMIT_BYTES + 1)
    for content in (body, iter([body[:-1], body[-1:]])):
        answer = keyed.http.post(path, content=content)
        assert answer.status_code == 413
        assert answer.json()["detail"]
        assert answer.headers["x-fal-request-id"]


def database_bytes(server: RunningServer) -> bytes:
    """Return everything that lies in the database's files."""
    paths = sorted(server.data_dir.glob("queue.sqlite3*"))
    assert paths
    return b"".join(path.read_bytes() for path in paths)


def test_sync_mode_leaves_nothing_behind(guarded: RunningServer, keyed: Api) -> None:
    """After its short life neither the prompt nor the result can be found again."""
    before = set(guarded.data_dir.glob("files/*/*"))
    prompt = "An unmistakable okapi"
    body = {**SMALL_INPUTS[EDIT], "prompt": prompt, "sync_mode": True}
    kept = keyed.submit(EDIT, body)
    keyed.wait(kept)
    result = keyed.result(kept)
    assert result.status_code == 200
    url: str = result.json()["images"][0]["url"]
    # Several pieces of the image: a long value is cut wherever one page of the file ends.
    pieces = [url[start : start + 60] for start in range(1000, 20_000, 1000)]
    secrets = [text.encode("ascii") for text in (prompt, *pieces)]
    found = [secret in database_bytes(guarded) for secret in secrets]
    assert found[0]
    assert any(found[1:])

    def is_gone() -> bool:
        answer: httpx2.Response = keyed.status(kept)
        return answer.status_code == 404

    poll_until(is_gone, "the request is forgotten")
    assert keyed.result(kept).status_code == 404

    def is_erased() -> bool:
        return not any(secret in database_bytes(guarded) for secret in secrets)

    poll_until(is_erased, "the bytes are erased", seconds=10)
    assert set(guarded.data_dir.glob("files/*/*")) == before
    assert not [path for path in guarded.data_dir.glob("spool/**/*") if path.is_file()]
