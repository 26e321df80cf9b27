"""Receipts of a real server's images: printed, checked, and replayed by the commands."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import WAIT_SECONDS, Api, connect, make_picture_uri

DRAW: dict[str, Any] = {
    "prompt": "A lighthouse",
    "image_size": "square",
    "num_inference_steps": 4,
    "acceleration": "none",
}
EDIT: dict[str, Any] = {"prompt": "Make it night", "image_size": "square"}

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    *(("fal-ai/flux-2", {**DRAW, "seed": seed}) for seed in range(6)),
    *(("fal-ai/flux-2", {**DRAW, "output_format": kind}) for kind in ("jpeg", "webp", "png")),
    *(("fal-ai/flux-2-dev", {**DRAW, "num_images": count}) for count in (2, 4)),
    ("fal-ai/flux-2", {**DRAW, "guidance_scale": 7.5, "image_size": "portrait_16_9"}),
    ("fal-ai/flux-2", {**DRAW, "image_size": {"width": 515, "height": 640}}),
    ("fal-ai/flux-2", {**DRAW, "sync_mode": True}),
    ("fal-ai/flux-2-flex", {"prompt": "Grüße", "image_size": "square", "num_inference_steps": 4}),
    (
        "fal-ai/flux-2/edit",
        {"prompt": "Fog", "num_inference_steps": 4, "image_urls": [make_picture_uri(420, 300)]},
    ),
    ("fal-ai/flux-2/flash", EDIT),
    ("fal-ai/flux-2/flash/edit", {**EDIT, "image_urls": [make_picture_uri()]}),
    ("fal-ai/flux-2/flash/edit", {**EDIT, "image_urls": [make_picture_uri(80, 64, "JPEG")] * 2}),
]
"""The twentieth edits a file of the server's own."""


@pytest.fixture(scope="module")
def box(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    """Return a server of this module's own."""
    return start_server(tmp_path_factory.mktemp("receipts"), FLUX2_TLS_PORT="none")


@pytest.fixture(scope="module")
def api(box: RunningServer) -> Iterator[Api]:
    """Return plain calls on it."""
    with connect(box) as http:
        yield Api(http)


@pytest.fixture(scope="module")
def request_ids(api: Api) -> list[str]:
    """Make the images of twenty requests; return the ids."""
    ids, url = [], ""
    for endpoint_id, body in REQUESTS:
        answer = api.run(endpoint_id, body)
        assert answer.status_code == 200, answer.text
        ids.append(answer.headers["x-fal-request-id"])
        url = url or answer.json()["images"][0]["url"]
    answer = api.run("fal-ai/flux-2/flash/edit", {**EDIT, "image_urls": [url]})
    return [*ids, answer.headers["x-fal-request-id"]]


def command(box: RunningServer, model: Path, *arguments: object) -> tuple[int, str, str]:
    """Run the program on the server's data folder; return exit status, output and errors."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "flux2-serve"), *map(str, arguments)],
        env={
            **os.environ,
            "FLUX2_DATA_DIR": str(box.data_dir),
            "FLUX2_MODEL": str(model),
            "FLUX2_SAFETY": "off",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS * 2,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def receipts(
    box: RunningServer,
    demo_model: Path,
    request_ids: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """Print the receipts, beside the running server, into files."""
    folder = tmp_path_factory.mktemp("printed")
    paths = []
    for request_id in request_ids:
        code, printed, errors = command(box, demo_model, "receipt", request_id)
        assert code == 0, errors
        paths.append(folder / f"{request_id}.json")
        paths[-1].write_text(printed)
    return paths


def test_a_receipt_tells_how_the_image_was_made(receipts: list[Path]) -> None:
    """Model files by hash, versions, level, seed, sizes, and the hashes of what was stored."""
    told = json.loads(receipts[3].read_text())["receipt"]
    assert told["endpoint_id"] == "fal-ai/flux-2"
    assert (told["seed"], told["prompt"]) == (3, "A lighthouse")
    assert told["input"] == {**DRAW, "seed": 3}
    assert (told["applied"]["acceleration"], told["applied"]["size"]) == ("none", "512x512")
    build = told["build"]
    hashes = build["files"]
    assert len(hashes["transformer/diffusion_pytorch_model.safetensors"]) == 64
    assert all(hashes.values())
    assert build["lora"]["name"] == "flux.2-turbo-lora.safetensors"
    assert {"flux2-serve", "torch", "diffusers", "transformers"} <= build["versions"].keys()
    (image,) = told["images"]
    assert (image["width"], image["height"], image["flagged"]) == (512, 512, False)
    assert len(image["sha256"]) == len(image["pixels_sha256"]) == 64
    assert "/" not in json.dumps(sorted(build["versions"])), "no path of the operator's"


def test_receipts_are_authentic_until_a_byte_changes(
    box: RunningServer, demo_model: Path, receipts: list[Path], tmp_path: Path
) -> None:
    """As the command says it, by its exit status too."""
    code, printed, _ = command(box, demo_model, "receipt", "--verify", receipts[0])
    assert (code, "authentic" in printed) == (0, True)
    changed = tmp_path / "changed.json"
    changed.write_text(receipts[0].read_text().replace("A lighthouse", "A lighthousf"))
    code, printed, _ = command(box, demo_model, "receipt", "--verify", changed)
    assert (code, "not authentic" in printed) == (1, True)


def test_twenty_receipts_replay_to_identical_pixels(
    box: RunningServer, demo_model: Path, receipts: list[Path]
) -> None:
    """Every endpoint, format, size and number of images; references from the data folder."""
    code, printed, errors = command(box, demo_model, "replay", *receipts)
    lines = printed.splitlines()
    assert code == 0, printed + errors
    assert len(receipts) == 20
    images = sum(len(json.loads(path.read_text())["receipt"]["images"]) for path in receipts)
    assert len([line for line in lines if line.endswith(": identical")]) == images == 24


def test_a_difference_is_measured_and_explained(
    box: RunningServer, demo_model: Path, receipts: list[Path]
) -> None:
    """Another number format gives another picture: how far, and why."""
    options = ("replay", receipts[0])
    config = box.data_dir / "bfloat16.toml"
    config.write_text('dtype = "bfloat16"\n')
    code, printed, _ = command(box, demo_model, *options, "--config", config)
    assert code == 1, printed
    assert "differs: PSNR" in printed
    assert "dtype: float32 then, bfloat16 now" in printed


def test_unknown_requests_are_told_of(box: RunningServer, demo_model: Path) -> None:
    """In one line, and with the exit status of a mistake."""
    code, printed, errors = command(box, demo_model, "receipt", "nothing")
    assert (code, printed) == (2, "")
    assert "no such request" in errors
