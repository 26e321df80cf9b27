"""The unmodified `@fal-ai/client` in Node, over plain http through the server's proxy route."""

from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.contract.conftest import LONG_JOB, SMALL_INPUTS, Api, check_image, run_node

ORDER = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


def run_script(node: str, server: RunningServer, script: str, *arguments: Any) -> Any:
    """Run a script of `js/` that reaches the server by its proxy route."""
    return run_node(node, script, f"{server.http}/api/fal/proxy", *arguments)


@pytest.mark.parametrize("endpoint_id", SMALL_INPUTS)
def test_every_way(api: Api, server: RunningServer, node: str, endpoint_id: str) -> None:
    """Subscribe with logs and updates, queue.*, and run all give the same image and an id."""
    found = run_script(node, server, "every_way.mjs", endpoint_id, SMALL_INPUTS[endpoint_id])
    words = [update["status"] for update in found["updates"]]
    assert words == sorted(words, key=ORDER.index)
    for status in (found["updates"][-1], found["status"]):
        assert status["status"] == "COMPLETED"
        assert any("step 2 of" in line["message"] for line in status["logs"])
        assert status["metrics"]["inference_time"] > 0
    assert found["quietStatus"]["logs"] is None
    assert found["submitted"]["status"] == "IN_QUEUE"
    request_ids = [found[way]["requestId"] for way in ("subscribe", "result", "run")]
    assert request_ids[:2] == [*found["enqueued"], found["submitted"]["request_id"]]
    assert all(request_ids)
    assert len(set(request_ids)) == 3
    pictures = set()
    for way in ("subscribe", "result", "run"):
        answer = found[way]["data"]
        assert answer["seed"] == 5
        (image,) = answer["images"]
        pictures.add(check_image(api, image, (512, 512), "png").tobytes())
    assert len(pictures) == 1


def test_cancel_and_mistakes(server: RunningServer, node: str) -> None:
    """Cancelled requests end in 499, wrong fields in a ValidationError with `fieldErrors`."""
    wrong = {"prompt": "A", "num_images": 9, "output_format": "gif"}
    arguments = (LONG_JOB, list(SMALL_INPUTS.items()), wrong)
    found = run_script(node, server, "mistakes.mjs", *arguments)
    assert found["positions"] == [0, 1, 2, 3, 4]
    assert found["unfinished"]["status"] == 400
    assert found["unfinished"]["body"] == {"detail": "Request is still in progress"}
    assert len(found["ends"]) == 1 + len(SMALL_INPUTS)
    for end in found["ends"]:
        assert end["error"]["status"] == 499
        assert end["error"]["requestId"] == end["requestId"]
        assert end["error"]["body"]["error_type"] == "client_cancelled"
    assert found["cancelFinished"]["status"] == 400
    assert found["cancelFinished"]["body"] == {"status": "ALREADY_COMPLETED"}
    for way in ("run", "subscribe"):
        error = found[way]
        assert error["isValidationError"]
        assert error["message"] == "Unprocessable Entity"
        locations = [item["loc"] for item in error["fieldErrors"]]
        assert locations == [["body", "num_images"], ["body", "output_format"]]
    for way in ("unknownStatus", "unknownResult"):
        assert found[way]["status"] == 404
        assert found[way]["body"] == {"status": "NOT_FOUND"}
    assert found["unknownEndpoint"]["status"] == 404
    assert found["unknownEndpoint"]["isApiError"]
    assert not found["unknownEndpoint"]["isValidationError"]
