"""`fal.apps` of the SDK `fal`, unchanged, by its own variables for the hosts."""

import json

from tests.conftest import RunningServer
from tests.contract.clients.conftest import by_hosts, run_client
from tests.contract.conftest import SMALL_INPUTS, Api, check_image

ENDPOINT = "fal-ai/flux-2"
INPUT = SMALL_INPUTS[ENDPOINT]


def test_submit_run_stream_and_cancel(keyed: RunningServer, keyed_api: Api) -> None:
    """All of them reach the queue, whose paths this client ends with a slash."""
    told = run_client("fal", "fal_apps.py", ENDPOINT, INPUT, env=by_hosts(keyed))
    assert told["version"] == "1.83.0"
    assert set(told["kinds"]) <= {"Queued", "InProgress"}
    assert any("step 2 of" in line for line in told["logs"])
    assert told["cancelled"] == 499
    last = json.loads(told["streamed"][-1].removeprefix("data: "))
    pictures = set()
    for result in (told["result"], told["run"], last):
        (image,) = result["images"]
        local = {**image, "url": f"{keyed.http}/files/{image['file_name']}"}
        pictures.add(check_image(keyed_api, local, (512, 512), "png").tobytes())
    assert len(pictures) == 1
