"""`flux2-serve serve` and no more: what a newcomer gets is the demonstration checkpoint."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.demonstration import DEMO_CHECKPOINT
from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    SCRIPTS,
    WAIT_SECONDS,
    Api,
    check_image,
    connect,
    run_python_client,
)

ENDPOINT = "fal-ai/flux-2"
PROMPT = "a large red circle in the center on a white background"
SEED, STEPS, SIDE = 5, 6, 512


@pytest.fixture(scope="module")
def newcomer(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server that was told of neither a model nor a safety checker."""
    data_dir = tmp_path_factory.mktemp("newcomer")
    running = start_server(data_dir, FLUX2_MODEL=None, FLUX2_SAFETY=None)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def drawn(newcomer: RunningServer) -> Image.Image:
    """Return what fal's own client got for the prompt."""
    body = {
        "prompt": PROMPT,
        "seed": SEED,
        "num_inference_steps": STEPS,
        "image_size": "square",
        "output_format": "png",
    }
    result: dict[str, Any] = run_python_client(newcomer, "subscribe.py", ENDPOINT, body)
    (image,) = result["images"]
    local = {**image, "url": f"{newcomer.http}/files/{image['file_name']}"}
    with connect(newcomer) as http:
        return check_image(Api(http), local, (SIDE, SIDE), "png")


def test_it_says_what_it_serves(newcomer: RunningServer) -> None:
    """A warning tells of shapes, of missing filters and of the way to real weights."""
    (warning,) = [line for line in newcomer.lines if '"level": "warning"' in line]
    told = json.loads(warning)
    for words in ("demonstration checkpoint", "not filtered", "--model", "FLUX2_MODEL"):
        assert words in told["msg"]
    assert told["model"] == str(DEMO_CHECKPOINT)
    assert "circles" in told["draws"]
    printed = [line for line in newcomer.lines if not line.startswith("{")]
    assert any(line.startswith("model: the demonstration checkpoint") for line in printed)
    assert any(line.startswith("safety: off") for line in printed)


def test_readiness_and_log_name_it(newcomer: RunningServer) -> None:
    """Nobody takes it for the real model: not by the probe, not by the runner's log line."""
    with connect(newcomer) as http:
        ready = http.get("/health/ready").json()
    assert (ready["status"], ready["safety"]) == ("ready", "off")
    assert ready["model"] == DEMO_CHECKPOINT.name
    assert [text.split()[0] for text in ready["pipelines"]] == [DEMO_CHECKPOINT.name]
    (loaded,) = [line for line in newcomer.lines if '"runner ready"' in line]
    assert DEMO_CHECKPOINT.name in loaded


def test_it_draws_what_it_is_asked(drawn: Image.Image) -> None:
    """The circle is red and the ground is white, of the first picture that a newcomer sees."""
    pixels = np.asarray(drawn).astype(int)
    middle = SIDE // 2
    red, green, blue = pixels[middle - 20 : middle + 20, middle - 20 : middle + 20].mean((0, 1))
    assert red > 150
    assert max(green, blue) < 100
    corners = pixels[np.ix_((8, SIDE - 8), (8, SIDE - 8))]
    assert corners.min() > 200


def test_diffusers_alone_draws_the_same_pixels(drawn: Image.Image, tmp_path: Path) -> None:
    """With `Flux2Pipeline.from_pretrained` of the folder, the same seed, and no network."""
    path = tmp_path / "plain.png"
    arguments = {
        "prompt": PROMPT,
        "seed": SEED,
        "num_inference_steps": STEPS,
        "guidance_scale": 2.5,
        "width": SIDE,
        "height": SIDE,
    }
    words = [json.dumps(item) for item in (str(DEMO_CHECKPOINT), str(path), arguments)]
    done = subprocess.run(
        [sys.executable, "-P", SCRIPTS / "plain_diffusers.py", *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        timeout=WAIT_SECONDS,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["pipelines", "pipelines.compat"]
    with Image.open(path) as plain:
        assert plain.tobytes() == drawn.tobytes()
