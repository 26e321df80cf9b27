"""What the operator wants in each picture is in what callers get, and survives a replay."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import StartServer
from tests.contract.conftest import WAIT_SECONDS, Api, connect, read_url

BODY = {"prompt": "A lighthouse", "image_size": "square", "num_inference_steps": 4}
PROGRAM = str(Path(sys.executable).parent / "flux2-serve")


def run(data_dir: Path, model: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program on a data folder."""
    settings = {"FLUX2_DATA_DIR": str(data_dir), "FLUX2_MODEL": str(model)}
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        env={**os.environ, **settings, "FLUX2_SAFETY": "off"},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS * 2,
    )


def test_watermark_and_credentials_are_in_what_callers_get(
    start_server: StartServer, demo_model: Path, tmp_path: Path
) -> None:
    """Asked for by settings alone; a replay has the watermark too and is identical."""
    c2pa = pytest.importorskip("c2pa", reason="the extra flux2-serve[c2pa] is not installed")
    told = run(tmp_path, demo_model, "certs", "--c2pa")
    assert told.returncode == 0, told.stderr
    names = dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)
    box = start_server(tmp_path, FLUX2_TLS_PORT="none", FLUX2_WATERMARK="on", **names)
    with connect(box) as http:
        answer = Api(http).run("fal-ai/flux-2", BODY)
        data = read_url(Api(http), answer.json()["images"][0])
    assert "watermark=on" in answer.headers["x-flux2-settings"]
    (tmp_path / "image.png").write_bytes(data)
    found = run(tmp_path, demo_model, "watermark", tmp_path / "image.png")
    assert (found.returncode, "watermark found" in found.stdout) == (0, True)
    anchors = (tmp_path / "c2pa" / "ca.pem").read_text()
    context = c2pa.Context.from_dict({"trust": {"trust_anchors": anchors}})
    reader = c2pa.Reader("image/png", io.BytesIO(data), context=context)
    assert reader.get_validation_state() == "Trusted"
    receipt = run(tmp_path, demo_model, "receipt", answer.headers["x-fal-request-id"])
    (tmp_path / "receipt.json").write_text(receipt.stdout)
    again = run(tmp_path, demo_model, "replay", tmp_path / "receipt.json")
    assert (again.returncode, "identical" in again.stdout) == (0, True), again.stdout


def test_the_marker_can_be_switched_off(
    start_server: StartServer, demo_model: Path, tmp_path: Path
) -> None:
    """It names the model's folder; without it the file says nothing."""
    models = []
    for word in ("on", "off"):
        box = start_server(tmp_path / word, FLUX2_TLS_PORT="none", FLUX2_MARKER=word)
        with connect(box) as http:
            answer = Api(http).run("fal-ai/flux-2", BODY)
            image = Image.open(io.BytesIO(read_url(Api(http), answer.json()["images"][0])))
        models.append(image.getexif().get(272))
    assert models == [demo_model.name, None]
