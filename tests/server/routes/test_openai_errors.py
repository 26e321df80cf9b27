"""fal's errors in OpenAI's form, on the paths that are OpenAI's and on no other."""

from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from server.errors import FalError, InputError, RequestError
from server.routes.openai_errors import OpenAIErrorsMiddleware, openai_error


def told(error: FalError) -> tuple[int, dict[str, Any]]:
    """Return status and inner body of an error of ours."""
    status, body = openai_error(error.status, error.body)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]


def mistake(*loc: str | int, kind: str = "missing") -> dict[str, Any]:
    """Make one entry of fal's list."""
    return {"type": kind, "loc": ["body", *loc], "msg": "Wrong", "input": None}


def test_all_mistakes_are_in_the_message_and_the_first_gives_field_and_code() -> None:
    """By the names that OpenAI's callers used."""
    error = InputError([mistake("image_size", "width", kind="less_than"), mistake("num_images")])
    status, body = told(error)
    assert status == 400
    assert body == {
        "message": "size: Wrong; n: Wrong",
        "type": "invalid_request_error",
        "param": "size",
        "code": "less_than",
    }


def test_a_flood_of_mistakes_is_cut() -> None:
    """A message is a line for a person."""
    _, body = told(InputError([mistake("image_urls", index) for index in range(9)]))
    assert body["message"].endswith("and 4 more")
    assert body["param"] == "image"


def test_a_body_that_is_no_object_has_no_field() -> None:
    """Nor has broken JSON, whose place is a number."""
    assert told(InputError([mistake()]))[1]["param"] is None
    assert told(InputError([mistake(7, kind="json_invalid")]))[1]["param"] is None


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (RequestError(401, "No"), "authentication_error", "invalid_api_key"),
        (RequestError(404, "No", "model_not_found"), "invalid_request_error", "model_not_found"),
        (RequestError(413, "No"), "invalid_request_error", "too_large"),
        (RequestError(429, "No"), "requests", "rate_limit_exceeded"),
        (RequestError(429, "No", "queue_full"), "requests", "queue_full"),
        (RequestError(503, "No"), "server_error", None),
        (RequestError(504, "No", "request_timeout"), "server_error", "request_timeout"),
    ],
)
def test_platform_errors(error: RequestError, kind: str, code: str | None) -> None:
    """The status stays, and so does fal's word where there is one."""
    status, body = told(error)
    assert status == error.status
    assert (body["message"], body["type"], body["param"], body["code"]) == ("No", kind, None, code)


def test_what_is_no_json_is_told_all_the_same() -> None:
    """Whoever wrote it."""
    assert openai_error(502, None)[1]["error"]["message"] == "The request could not be answered"


async def refuse(_request: Request) -> Response:
    """Answer with an error in fal's form, in two pieces."""
    return StreamingResponse(
        iter([b'{"detail":"Lo', b'ng ago"}']),
        status_code=422,
        headers={"x-fal-request-id": "one", "content-length": "20"},
        media_type="application/json",
    )


async def accept(_request: Request) -> Response:
    """Answer well."""
    return JSONResponse({"detail": "fine"}, headers={"x-fal-request-id": "two"})


async def fail(_request: Request) -> Response:
    """Answer with an error that is no JSON."""
    return PlainTextResponse("down", status_code=502)


@pytest.fixture
async def http() -> Any:
    """Return a client of an app behind the middleware."""
    routes = [
        Route("/v1/images/refuse", refuse),
        Route("/v1/images/accept", accept),
        Route("/v1/images/fail", fail),
        Route("/v1/models/refuse", refuse),
    ]
    transport = httpx2.ASGITransport(OpenAIErrorsMiddleware(Starlette(routes=routes)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://box") as client:
        yield client


@pytest.mark.anyio
async def test_only_errors_of_these_paths_are_rewritten(http: httpx2.AsyncClient) -> None:
    """In one piece of the right length, with the headers that were there."""
    refused = await http.get("/v1/images/refuse")
    assert (refused.status_code, refused.headers["x-fal-request-id"]) == (400, "one")
    assert refused.json()["error"]["message"] == "Long ago"
    assert int(refused.headers["content-length"]) == len(refused.content)
    assert (await http.get("/v1/images/accept")).json() == {"detail": "fine"}
    failed = await http.get("/v1/images/fail")
    assert (failed.status_code, failed.headers["content-type"]) == (502, "application/json")
    assert failed.json()["error"]["type"] == "server_error"
    assert (await http.get("/v1/models/refuse")).json() == {"detail": "Long ago"}
