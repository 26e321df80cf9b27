"""[dev] and [klein] on one runner, with real checkpoints: each request is made by its own model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import START_SECONDS, RunningServer, StartServer
from tests.contract.conftest import Api, connect

DEV, KLEIN = "fal-ai/flux-2", "fal-ai/flux-2/klein/4b"
SIZE = {"width": 512, "height": 512}
INPUT: dict[str, Any] = {"prompt": "A lighthouse", "image_size": SIZE, "seed": 5}


@pytest.fixture(scope="module")
def klein_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny klein."""
    folder = tmp_path_factory.mktemp("model") / "tiny-klein"
    command = [sys.executable, "-P", "-m", "pipelines.tools.demo_model", str(folder)]
    subprocess.run([*command, "--model", "klein-4b"], check=True, timeout=START_SECONDS)
    return folder


def pixels_of(api: Api, answer: httpx2.Response) -> bytes:
    """Return the file of a result's one image."""
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    file = api.http.get(image["url"])
    assert file.status_code == 200
    return file.content


def states(server: RunningServer) -> dict[str, str]:
    """Return how it stands with the endpoints of both models, as a program for fal sees it."""
    with connect(server) as http:
        answer = http.get("/v1/models", params={"endpoint_id": [DEV, KLEIN]})
        return {each["endpoint_id"]: each["serving"]["state"] for each in answer.json()["models"]}


def test_one_box_with_two_models(
    start_server: StartServer, klein_model: Path, tmp_path: Path
) -> None:
    """What waits is grouped by model, and a switch and back leaves no trace in an image."""
    server = start_server(
        tmp_path / "data", FLUX2_MODELS=f"klein-4b={klein_model}", FLUX2_TLS_PORT="none"
    )
    dev_input = {**INPUT, "num_inference_steps": 4, "output_format": "png"}
    with connect(server) as http:
        api = Api(http)
        assert states(server) == {DEV: "loaded", KLEIN: "loadable"}
        first = pixels_of(api, api.run(DEV, dev_input))
        kept = [
            api.submit(DEV, dev_input),
            api.submit(KLEIN, INPUT),
            api.submit(DEV, dev_input),
            api.submit(KLEIN, INPUT),
        ]
        results = [api.result(each) for each in kept if api.wait(each)]
        assert states(server) == {DEV: "loadable", KLEIN: "loaded"}
        dev, klein, again, klein_again = (pixels_of(api, answer) for answer in results)
        assert first == dev == again
        assert klein == klein_again != dev
        assert len([line for line in server.lines if '"switching"' in line]) == 1
        assert pixels_of(api, api.run(DEV, dev_input)) == first
        ready = http.get("/health/ready").json()
        assert ready["models"]["dev"] == {"state": "loaded", "reason": None}
        assert ready["models"]["klein-4b"] == {"state": "loadable", "reason": None}
    assert server.stop() == 0
