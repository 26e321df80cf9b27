"""The unmodified `fal_client`, in a process of its own, over TLS with the server's own CA."""

from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.contract.conftest import LONG_JOB, SMALL_INPUTS, Api, check_image, run_python_client

ORDER = ["Queued", "InProgress", "Completed"]
CANCELLED = "Request was cancelled"


def check_updates(updates: list[Any]) -> None:
    """Check that the words come in order and that the log tells of the work."""
    kinds = [update["kind"] for update in updates]
    assert kinds == sorted(kinds, key=ORDER.index)
    check_completed(updates[-1])


def check_completed(status: Any) -> None:
    """Check a successful request's status, asked for with its log.

    The lines have every key that one of fal's clients, in any language, reads.
    """
    assert status["kind"] == "Completed"
    assert status["metrics"]["inference_time"] > 0
    assert (status["error"], status["error_type"]) == (None, None)
    assert any("step 2 of" in line["message"] for line in status["logs"])
    for line in status["logs"]:
        assert set(line) == {"message", "timestamp", "level", "source", "labels"}
        assert line["labels"] == {"level": line["level"]}
        assert line["source"] == "USER"
        assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("endpoint_id", SMALL_INPUTS)
def test_every_way(api: Api, server: RunningServer, endpoint_id: str) -> None:
    """Subscribe, submit, status, result and run, blocking and async, all give the same image."""
    found = run_python_client(server, "every_way.py", endpoint_id, SMALL_INPUTS[endpoint_id])
    pictures = set()
    for ways in found.values():
        check_updates(ways["updates"])
        check_updates(ways["events"])
        check_completed(ways["status"])
        assert ways["get"] == ways["result"]
        for way in ("subscribe", "result", "run"):
            answer = ways[way]
            assert answer["seed"] == 5
            (image,) = answer["images"]
            # The client was on https, which the plain client here does not trust.
            assert image["url"].startswith(f"https://{server.tls_address}/files/")
            local = {**image, "url": f"{server.http}/files/{image['file_name']}"}
            pictures.add(check_image(api, local, (512, 512), "png").tobytes())
    assert len(pictures) == 1
    assert found["sync"]["same_handle"]
    assert len(found["sync"]["enqueued"]) == 1
    assert found["sync"]["quiet_status"]["logs"] is None


def test_queue_positions_and_cancel(server: RunningServer) -> None:
    """Waiting requests count from zero and move up; cancelled ones, running or not, end in 499."""
    waiting = list(SMALL_INPUTS.items())
    found = run_python_client(server, "queue_life.py", LONG_JOB, waiting)
    assert found["positions"] == [0, 1, 2, 3, 4]
    assert found["positions_after"] == [0, 1, 2, 3]
    assert found["unfinished"]["status_code"] == 400
    assert found["unfinished"]["message"] == "Request is still in progress"
    assert len(found["ends"]) == 1 + len(waiting)
    for end, request_id in zip(found["ends"], found["request_ids"], strict=True):
        assert end == {
            "status_code": 499,
            "message": CANCELLED,
            "text": CANCELLED,
            "error_type": "client_cancelled",
            "request_id": request_id,
        }
    assert found["second_cancel"]["status_code"] == 400
    assert found["second_cancel"]["text"] == '{"status": "ALREADY_COMPLETED"}'


def test_mistakes(api: Api, server: RunningServer) -> None:
    """Errors reach the caller as the client's own, with fal's words in them."""
    kept = api.submit("fal-ai/flux-2", {})
    api.wait(kept)
    wrong = {"prompt": "A", "num_images": 9}
    arguments = ("fal-ai/flux-2", wrong, kept.rpartition("/")[2])
    found = run_python_client(server, "mistakes.py", *arguments)
    item = {
        "type": "less_than_equal",
        "loc": ["body", "num_images"],
        "msg": "Input should be less than or equal to 4",
        "input": 9,
        "ctx": {"le": 4},
    }
    refused = {"status_code": 422, "message": [item], "text": str([item]), "error_type": None}
    for way in ("run", "run_async", "subscribe", "subscribe_async"):
        assert found[way] == refused
    assert found["cancel_finished"]["status_code"] == 400
    assert found["cancel_finished"]["text"] == '{"status": "ALREADY_COMPLETED"}'
    for way in ("unknown_status", "unknown_result", "unknown_cancel"):
        assert found[way]["status_code"] == 404
        assert found[way]["text"] == '{"status": "NOT_FOUND"}'
    assert found["unknown_endpoint"]["status_code"] == 404
    assert found["unknown_endpoint"]["message"] == 'Application "fal-ai/no-such-model" not found'
