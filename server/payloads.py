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
    succeeded = 200 <= outcome.http_status < 300
    # As captured on the wire: `error` is there, and null, in a success too. The two ids differ
    # only after a retry by fal's own gateway, of which there is none here.
    letter: dict[str, Any] = {
        "error": None if succeeded else f"Invalid status code: {outcome.http_status}",
        "gateway_request_id": job.request_id,
        "payload": None,
        "request_id": job.request_id,
        "status": "OK" if succeeded else "ERROR",
    }
    try:
        payload = json.loads(outcome.body)
        return json.dumps({**letter, "payload": payload}, ensure_ascii=True, allow_nan=False)
    except (ValueError, RecursionError):
        return json.dumps({**letter, "payload_error": PAYLOAD_ERROR}, ensure_ascii=True)
