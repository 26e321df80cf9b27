"""Status codes, bodies and headers, byte by byte, as no client library would show them."""

import uuid
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from tests.conftest import RunningServer
from tests.contract.conftest import LONG_JOB, SMALL_INPUTS, Api, kept_path

FLUX, FLEX = "fal-ai/flux-2", "fal-ai/flux-2-flex"
URLS = ("response_url", "status_url", "cancel_url")
ALWAYS = {"status", "request_id", *URLS, "logs", "metrics"}
NOT_FOUND = {"status": "NOT_FOUND"}
CANCELLED = {"detail": "Request was cancelled", "error_type": "client_cancelled"}


@dataclass(frozen=True, slots=True)
class Told:
    """What the server answered at each point of one story, by name, and who it was about."""

    answers: dict[str, httpx2.Response]
    request_ids: dict[str, str]


@pytest.fixture(scope="module")
def told(api: Api) -> Told:
    """Tell the story: one request runs, one waits and then runs, one waits and is cancelled."""
    long = api.submit(FLUX, LONG_JOB)
    api.wait(long, "IN_PROGRESS")
    submitted = api.http.post(f"/queue/{FLEX}", json=SMALL_INPUTS[FLEX])
    quick = kept_path(FLEX, submitted.json()["request_id"])
    doomed = api.submit(FLUX, LONG_JOB)
    answers = {
        "quick submitted": submitted,
        "quick waits": api.status(quick),
        "doomed waits": api.status(doomed),
        "quick waits, with logs": api.status(quick, logs="1"),
        "long runs": api.status(long),
        "long runs, with logs": api.status(long, logs="true"),
        "quick's result, early": api.result(quick),
        "long's result, early": api.result(long),
        "doomed is cancelled": api.cancel(doomed),
        "doomed is cancelled again": api.cancel(doomed),
        "doomed is over": api.status(doomed),
        "doomed's result": api.result(doomed),
        "long is cancelled": api.cancel(long),
        "long is over": api.wait(long),
        "long's result": api.result(long),
        "quick is over": api.wait(quick),
        "quick is over, with logs": api.status(quick, logs="1"),
        "quick is over, without": api.status(quick, logs="false"),
        "quick's result": api.result(quick),
        "quick's result, again": api.result(quick),
        "quick is cancelled, late": api.cancel(quick),
    }
    kept = {"long": long, "quick": quick, "doomed": doomed}
    return Told(answers, {name: path.rpartition("/")[2] for name, path in kept.items()})


def test_every_answer_names_its_request(told: Told) -> None:
    """The header carries the request's own id, on successes and errors alike."""
    for name, answer in told.answers.items():
        who = name.split(" ")[0].removesuffix("'s")
        assert answer.headers["x-fal-request-id"] == told.request_ids[who], name
        assert answer.headers["content-type"] == "application/json", name
        assert answer.content.isascii()


@pytest.mark.parametrize(
    ("name", "code", "extra"),
    [
        ("quick submitted", 200, {"status": "IN_QUEUE", "queue_position": 0}),
        ("quick waits", 202, {"status": "IN_QUEUE", "queue_position": 0}),
        ("doomed waits", 202, {"status": "IN_QUEUE", "queue_position": 1}),
        ("long runs", 202, {"status": "IN_PROGRESS"}),
    ],
)
def test_unfinished(told: Told, name: str, code: int, extra: dict[str, Any]) -> None:
    """Every key is there, no more, and what is not known yet is null or empty."""
    answer = told.answers[name]
    body = answer.json()
    assert answer.status_code == code
    assert set(body) == ALWAYS | set(extra)
    assert {**body, **extra, "logs": None, "metrics": {}} == body
    assert uuid.UUID(body["request_id"]).version == 4


def test_completed(told: Told) -> None:
    """200 with the time it took; nothing of an error unless there was one."""
    answer = told.answers["quick is over"]
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == ALWAYS
    assert (body["status"], body["logs"]) == ("COMPLETED", None)
    assert body["metrics"]["inference_time"] > 0
    failed = told.answers["long is over"].json()
    assert set(failed) == ALWAYS | {"error", "error_type"}
    assert failed["error"] == CANCELLED["detail"]
    assert failed["error_type"] == CANCELLED["error_type"]


def test_logs_come_when_asked_for(told: Told) -> None:
    """A list, even when empty; else null."""
    assert told.answers["quick waits, with logs"].json()["logs"] == []
    assert isinstance(told.answers["long runs, with logs"].json()["logs"], list)
    assert told.answers["quick is over, without"].json()["logs"] is None
    lines = told.answers["quick is over, with logs"].json()["logs"]
    assert [line["message"] for line in lines][-1] == "Image 1 of 1: decoded."


def test_result(told: Told) -> None:
    """400 as long as there is none, then the same bytes every time."""
    for name in ("quick's result, early", "long's result, early"):
        answer = told.answers[name]
        assert answer.status_code == 400
        assert answer.json() == {"detail": "Request is still in progress"}
    first, second = told.answers["quick's result"], told.answers["quick's result, again"]
    assert first.status_code == second.status_code == 200
    assert first.content == second.content


def test_cancel(told: Told) -> None:
    """200 when it left the queue, 202 when it will stop, 400 when it was over."""
    expected = {
        "doomed is cancelled": (200, {"status": "OK", "success": True}),
        "doomed is cancelled again": (400, {"status": "ALREADY_COMPLETED"}),
        "long is cancelled": (202, {"status": "CANCELLATION_REQUESTED", "success": True}),
        "quick is cancelled, late": (400, {"status": "ALREADY_COMPLETED"}),
        "doomed's result": (499, CANCELLED),
        "long's result": (499, CANCELLED),
    }
    for name, (code, body) in expected.items():
        assert (told.answers[name].status_code, told.answers[name].json()) == (code, body), name
    assert told.answers["long's result"].headers["x-fal-error-type"] == "client_cancelled"


@pytest.fixture(scope="module")
def refused_id(api: Api) -> str:
    """Return the id of a completed request to `fal-ai/flux-2` whose result is a 422."""
    kept = api.submit(FLUX, {})
    api.wait(kept)
    return kept.rpartition("/")[2]


@pytest.mark.parametrize(
    "path",
    [
        "/queue/fal-ai/flux-2/requests/{id}",
        "/queue/fal-ai/flux-2/requests/{id}/",
        "/queue/fal-ai/flux-2/requests/{id}/response",
        "/queue/fal-ai/flux-2/flash/edit/requests/{id}",
        "/queue/fal-ai/flux-2/requests/{id}/status",
        "/queue/fal-ai/flux-2/requests/{id}/status/",
        "/queue/fal-ai/flux-2/flash/requests/{id}/status?logs=0",
        "//queue/fal-ai/flux-2/requests/{id}/status",
    ],
)
def test_spellings_of_a_kept_path(
    api: Api, server: RunningServer, refused_id: str, path: str
) -> None:
    """Application or whole endpoint id, with or without slashes around it."""
    answer = api.http.get(server.http + path.format(id=refused_id))
    assert answer.status_code == (200 if "status" in path else 422)
    assert answer.headers["x-fal-request-id"] == refused_id


@pytest.mark.parametrize("application", ["fal-ai/flux-2-dev", "fal-ai/flux-2x", "x/flux-2"])
def test_other_application_knows_no_such_request(
    api: Api, refused_id: str, application: str
) -> None:
    """An id is unknown under any application but its own, and so is one never given."""
    unknown = f"/queue/{FLUX}/requests/{uuid.uuid4()}"
    for kept in (f"/queue/{application}/requests/{refused_id}", unknown, f"{unknown}x%00"):
        for answer in (api.status(kept), api.result(kept), api.cancel(kept)):
            assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/fal-ai/flux-2", {}),
        ("/fal-ai/flux-2/", {}),
        ("//fal-ai/flux-2/", {}),
        ("/run/fal-ai/flux-2", {}),
        ("/fal-ai/flux-2", {"host": "fal.run"}),
        ("/api/fal/proxy", {"x-fal-target-url": "https://fal.run/fal-ai/flux-2"}),
        ("/api/fal/proxy/", {"x-fal-target-url": "https://fal.run/fal-ai/flux-2/"}),
    ],
)
def test_doors_to_the_synchronous_route(
    api: Api, server: RunningServer, path: str, headers: dict[str, str]
) -> None:
    """Each of them validates at once."""
    answer = api.http.post(server.http + path, json={}, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "prompt"]


@pytest.mark.parametrize(
    ("path", "headers", "base"),
    [
        ("/queue/fal-ai/flux-2", {}, "{origin}/queue"),
        ("/queue/fal-ai/flux-2/flash/", {}, "{origin}/queue"),
        ("/fal-ai/flux-2", {"host": "queue.fal.run"}, "http://queue.fal.run"),
        (
            "/api/fal/proxy",
            {"x-fal-target-url": "https://queue.fal.run/fal-ai/flux-2"},
            "{origin}/queue",
        ),
    ],
)
def test_doors_to_the_queue(
    api: Api, server: RunningServer, path: str, headers: dict[str, str], base: str
) -> None:
    """Each accepts, and answers with URLs that lead back through the same door."""
    answer = api.http.post(server.http + path, json={}, headers=headers)
    assert answer.status_code == 200
    body = answer.json()
    kept = f"{base.format(origin=server.http)}/fal-ai/flux-2/requests/{body['request_id']}"
    assert [body[key] for key in URLS] == [kept, f"{kept}/status", f"{kept}/cancel"]
    api.wait(kept_path(FLUX, body["request_id"]))
    if "host" in headers:
        url = httpx2.URL(body["status_url"])
        status = api.http.get(url.path, headers=headers)
    else:
        status = api.http.get(body["status_url"])
    assert status.json()["status_url"] == body["status_url"]


def test_proxy_keeps_the_query(api: Api, refused_id: str) -> None:
    """The target URL's own query is what counts."""
    target = f"https://queue.fal.run/fal-ai/flux-2/requests/{refused_id}/status?logs=1"
    answer = api.http.get("/api/fal/proxy?logs=0", headers={"x-fal-target-url": target})
    assert isinstance(answer.json()["logs"], list)


@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "/fal-ai/flux-2",
        "http://[::1",
        "https://example.com/fal-ai/flux-2",
        "https://fal.run.example.com/fal-ai/flux-2",
        "https://notfal.run/fal-ai/flux-2",
        "https://fal.run@example.com/fal-ai/flux-2",
    ],
)
def test_proxy_refuses_other_targets(api: Api, target: str | None) -> None:
    """It forwards to nobody, and pretends so for nobody but fal."""
    headers = {} if target is None else {"x-fal-target-url": target}
    answer = api.http.post("/api/fal/proxy", json={}, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Invalid request")


@pytest.mark.parametrize(
    ("method", "path", "code", "detail"),
    [
        ("POST", "/fal-ai/no-such", 404, 'Application "fal-ai/no-such" not found'),
        ("POST", "/queue/fal-ai/no-such", 404, 'Application "fal-ai/no-such" not found'),
        ("POST", "/fal-ai/flux-2/no/such", 404, "Path /no/such not found"),
        ("POST", "/queue/fal-ai/flux-2/no/such", 404, "Path /no/such not found"),
        ("GET", "/fal-ai/flux-2", 405, "Method Not Allowed"),
        ("DELETE", "/queue/fal-ai/flux-2", 405, "Method Not Allowed"),
        ("GET", "/queue/fal-ai/flux-2/requests/x/cancel", 405, "Method Not Allowed"),
        ("GET", "/files/x.png", 404, "File not found"),
        ("GET", "/files/..%2F..%2Flock", 405, "Method Not Allowed"),
        ("GET", "/api/openapi/queue/openapi.json?endpoint_id=x/y", 404, None),
        ("GET", "/api/openapi/queue/openapi.json", 422, None),
        ("POST", "/\u00e9/\u00fc", 404, 'Application "\u00e9/\u00fc" not found'),
    ],
)
def test_errors_of_paths(api: Api, method: str, path: str, code: int, detail: str | None) -> None:
    """They are JSON in ASCII with a `detail`, and carry an id like every answer."""
    answer = api.http.request(method, path)
    assert answer.status_code == code
    assert uuid.UUID(answer.headers["x-fal-request-id"]).version == 4
    assert answer.content.isascii()
    found = answer.json()["detail"]
    assert found == detail if detail else found


def test_cors(api: Api) -> None:
    """A page of an allowed origin may send fal's headers and read the request id."""
    origin = {"origin": "http://localhost:3000"}
    asked = "authorization, content-type, x-fal-target-url, x-fal-queue-priority"
    wish = {"access-control-request-method": "PUT", "access-control-request-headers": asked}
    preflight = api.http.options(f"/queue/{FLUX}", headers={**origin, **wish})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] in ("*", origin["origin"])
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert set(asked.split(", ")) <= set(
        preflight.headers["access-control-allow-headers"].replace(" ", "").split(",")
    )
    for answer in (
        api.http.post(f"/{FLUX}", json={}, headers=origin),
        api.http.get("/files/x.png", headers=origin),
        api.http.get(f"/queue/{FLUX}/requests/x", headers=origin),
    ):
        assert answer.headers["access-control-allow-origin"] in ("*", origin["origin"])
        assert "x-fal-request-id" in answer.headers["access-control-expose-headers"].lower()


def test_other_pages_and_other_names_get_nothing(api: Api) -> None:
    """Without keys, a page from elsewhere cannot use the server, whatever name it calls it by."""
    foreign = {"origin": "https://page.example"}
    wish = {"access-control-request-method": "POST"}
    for answer, status in (
        (api.http.post(f"/{FLUX}", json={"prompt": "x"}, headers=foreign), 403),
        (api.http.options(f"/{FLUX}", headers={**foreign, **wish}), 403),
        (api.http.post(f"/{FLUX}", json={}, headers={"host": "page.example"}), 400),
    ):
        assert answer.status_code == status
        assert isinstance(answer.json()["detail"], str)
        assert answer.headers["x-fal-request-id"]
        assert "access-control-allow-origin" not in answer.headers
