"""What a webhook says: fal's payloads, as text that stays the same at every attempt."""

import json
from typing import Any

from server.jobs import Job

PAYLOAD_ERROR = (
    "Response payload is not JSON serializable. Either return a JSON serializable object or use "
    "the queue endpoint to retrieve the response."
)
"""fal's words, for a result that JSON cannot carry."""


def webhook_body(job: Job) -> str:
    """Return what the receiver of a completed job's webhook gets, as ASCII JSON text.

    The payload is the body of the result route, of an error too; it is null, with a
    `payload_error`, when that body is not JSON: NaN and numbers beyond a double are not.
    """
    outcome = job.outcome
    if outcome is None:
        raise ValueError(f"{job.request_id} is not completed")
    # fal's two ids differ only after a retry by its own gateway, of which there is none here.
    letter: dict[str, Any] = {
        "request_id": job.request_id,
        "gateway_request_id": job.request_id,
        "status": "OK",
    }
    if not 200 <= outcome.http_status < 300:
        letter["status"] = "ERROR"
        letter["error"] = f"Invalid status code: {outcome.http_status}"
    try:
        letter["payload"] = json.loads(outcome.body)
        return json.dumps(letter, ensure_ascii=True, allow_nan=False)
    except (ValueError, RecursionError):
        letter |= {"payload": None, "payload_error": PAYLOAD_ERROR}
        return json.dumps(letter, ensure_ascii=True)
