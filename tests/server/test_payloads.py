"""Webhook bodies: fal's fields, ASCII, and always JSON."""

import json
from typing import Any

import pytest

from server import jobs
from server.jobs import Job, Outcome
from server.payloads import PAYLOAD_ERROR, webhook_body

QUEUED = Job(
    request_id="5057fca7-2eb3-468f-b95d-cefe92b0b9d4",
    endpoint_id="fal-ai/flux-2",
    owner="local",
    origin="http://box",
    input="{}",
    created_at=1.0,
)


def body_of(http_status: int, body: str) -> dict[str, Any]:
    """Return the webhook body, parsed by strict rules, of a job that came to this answer."""
    outcome = Outcome(http_status=http_status, body=body, keep_seconds=60)
    text = webhook_body(jobs.complete(QUEUED, outcome, 2.0))
    assert text.isascii()

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    parsed = json.loads(text, parse_constant=refuse)
    assert isinstance(parsed, dict)
    return parsed


def test_a_success_carries_the_result() -> None:
    """Every field of fal's, with the result as the result route has it."""
    result = {"images": [{"url": "http://box/files/a.png"}], "seed": 17454220438242315174}
    assert body_of(200, json.dumps(result)) == {
        "request_id": QUEUED.request_id,
        "gateway_request_id": QUEUED.request_id,
        "status": "OK",
        "error": None,
        "payload": result,
    }


@pytest.mark.parametrize("http_status", [422, 499, 500, 503, 504])
def test_a_failure_carries_the_error(http_status: int) -> None:
    """The error is fal's sentence about the status, the payload the body of the answer."""
    detail = {"detail": [{"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}]}
    assert body_of(http_status, json.dumps(detail)) == {
        "request_id": QUEUED.request_id,
        "gateway_request_id": QUEUED.request_id,
        "status": "ERROR",
        "error": f"Invalid status code: {http_status}",
        "payload": detail,
    }


@pytest.mark.parametrize(
    "body",
    ["", "not JSON", '{"seed": NaN}', '{"seed": 1e999}', '{"a": -Infinity}', "[" * 100_000],
)
def test_what_json_cannot_carry_is_told(body: str) -> None:
    """The receiver hears that there is a result, and to fetch it from the queue."""
    answer = body_of(200, body)
    assert answer["payload"] is None
    assert answer["payload_error"] == PAYLOAD_ERROR
    assert answer["status"] == "OK"


def test_any_text_passes_as_ascii() -> None:
    """Lone surrogates, which UTF-8 has no bytes for, arrive as they were."""
    result = {"prompt": "\u00fcber \ud800 \U0001f600 \u202e\x00"}
    assert body_of(200, json.dumps(result, ensure_ascii=False))["payload"] == result


def test_a_job_without_an_outcome_has_no_webhook() -> None:
    """Asking for one is a mistake of ours."""
    with pytest.raises(ValueError, match="not completed"):
        webhook_body(QUEUED)
