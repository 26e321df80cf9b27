"""LoRAs by the real client: uploaded, by URL and by name; and gone with the request."""

import hashlib
import http.server
import json
import pickle
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import Api, connect, run_python_client
from tests.contract.test_receipts import command

ENDPOINT = "fal-ai/flux-2/lora"
INPUT = {"prompt": "x", "image_size": "square", "num_inference_steps": 4, "seed": 3}
SETTINGS = "x-flux2-settings"


def make_lora(value: float = 0.5, name: str = "double_blocks.0.img_attn.proj") -> bytes:
    """Write a LoRA of rank 1 by hand, which is as strong as this for the tiny checkpoint."""
    half = struct.pack("<64f", *[value] * 64)
    header = {
        f"diffusion_model.{name}.lora_{side}.weight": {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [begin, begin + 256],
        }
        for side, shape, begin in (("A", [1, 64], 0), ("B", [64, 1], 256))
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + half + half


@dataclass(frozen=True, slots=True)
class Box:
    """A server with a folder of LoRAs, and a web server over `far` that it may fetch from."""

    server: RunningServer
    api: Api
    folder: Path
    far: Path
    origin: str

    def draw(self, *loras: Any, endpoint_id: str = ENDPOINT, **more: Any) -> tuple[str, str]:
        """Make an image; return it as a data URI, and how it was made."""
        body = {**INPUT, "sync_mode": True, "loras": loras, **more}
        answer = self.api.run(endpoint_id, body)
        assert answer.status_code == 200, answer.text
        return answer.json()["images"][0]["url"], answer.headers[SETTINGS]

    def refused(self, *loras: Any) -> dict[str, Any]:
        """Ask for what must be refused; return the one mistake."""
        answer = self.api.run(ENDPOINT, {**INPUT, "loras": loras})
        assert answer.status_code == 422, answer.text
        (item,) = answer.json()["detail"]
        return dict(item)


@pytest.fixture(scope="module")
def box(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Return both, on the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("loras")
    mine, far = folder / "mine", folder / "far"
    mine.mkdir()
    far.mkdir()
    handler = partial(QuietHandler, directory=str(far))
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    server = start_server(folder / "data", FLUX2_LORA_DIR=str(mine), FLUX2_FETCH_ALLOW="127.0.0.1")
    with connect(server) as client:
        yield Box(server, Api(client), mine, far, f"http://127.0.0.1:{web.server_port}")
    assert server.stop() == 0
    web.shutdown()
    web.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what it is asked to itself."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the library's name)
        """Write nothing."""


def test_the_unmodified_client_uploads_one_and_uses_it(box: Box, tmp_path: Path) -> None:
    """It shows by its scale, a pickle is refused, and the base is the same before and after."""
    lora, bad = tmp_path / "style.safetensors", tmp_path / "bad.safetensors"
    lora.write_bytes(make_lora())
    bad.write_bytes(pickle.dumps({"lora": 1}))
    origin = f"https://{box.server.tls_address}"
    told = run_python_client(box.server, "loras.py", origin, str(lora), str(bad))
    assert told["before"] == told["after"]
    assert len({told["before"], told["with"], told["weaker"]}) == 3
    assert "loras" in told["error"]
    assert "a pickle" in told["error"]


def test_by_name_upload_and_url_it_is_the_same(box: Box) -> None:
    """And told by its content, which is read once for all of them."""
    (box.folder / "owner").mkdir()
    data = make_lora(0.4)
    for path in (box.folder / "owner" / "style.safetensors", box.far / "style.bin"):
        path.write_bytes(data)
    uploaded = box.api.http.post("/files/upload", content=data).json()["access_url"]
    digest = hashlib.sha256(data).hexdigest()[:12]
    made = {
        box.draw({"path": path, "scale": 0.5})
        for path in ("owner/style", uploaded, f"{box.origin}/style.bin")
    }
    ((_, applied),) = made
    assert f"loras={digest}*0.5" in applied
    assert "loras" not in box.draw()[1]


def test_what_does_not_fit_the_model_fails_its_request_alone(box: Box) -> None:
    """Its header is that of a LoRA; only the runner knows the layers. The key is named."""
    (box.folder / "deep.safetensors").write_bytes(make_lora(name="double_blocks.99.img_mlp.0"))
    (box.folder / "good.safetensors").write_bytes(make_lora())
    before = box.draw({"path": "good"})
    item = box.refused({"path": "good"}, {"path": "deep"})
    assert item["loc"] == ["body", "loras", 1, "path"]
    assert (item["type"], item["input"]) == ("lora_load_error", "deep")
    assert "double_blocks.99.img_mlp.0" in item["msg"]
    assert str(box.folder) not in json.dumps(item)
    assert box.draw({"path": "good"}) == before


def test_a_url_that_leads_to_no_lora_is_told_at_its_place(box: Box) -> None:
    """A page, a hole, and a place that nobody allowed."""
    (box.far / "page").write_text("<html>")
    for path, kind in (
        (f"{box.origin}/page", "lora_load_error"),
        (f"{box.origin}/missing", "file_download_error"),
        ("http://127.0.0.2/a.safetensors", "file_download_error"),
        ("owner/unknown", "file_download_error"),
    ):
        item = box.refused({"path": path})
        assert item["loc"] == ["body", "loras", 0, "path"]
        assert item["type"] == kind


def test_the_gallery_answers_in_its_own_form_once_its_lora_is_there(box: Box) -> None:
    """Until then it says which file it wants."""
    endpoint_id = "fal-ai/flux-2-lora-gallery/realism"
    body = {**INPUT, "lora_scale": 2, "sync_mode": True}
    missing = box.api.run(endpoint_id, body)
    assert missing.status_code == 404
    assert "flux-2-lora-gallery/realism.safetensors" in missing.json()["detail"]
    (box.folder / "flux-2-lora-gallery").mkdir()
    data = make_lora(0.3)
    (box.folder / "flux-2-lora-gallery" / "realism.safetensors").write_bytes(data)
    answer = box.api.run(endpoint_id, body)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["images", "prompt", "seed"]
    assert f"loras={hashlib.sha256(data).hexdigest()[:12]}*2" in answer.headers[SETTINGS]


def test_a_receipt_replays_with_its_loras(
    box: Box, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by their content: the operator's, an upload, and one that only the cache still has."""
    monkeypatch.setenv("FLUX2_LORA_DIR", str(box.folder))
    far, mine, uploaded = make_lora(0.11), make_lora(0.12), make_lora(0.13)
    (box.folder / "mine.safetensors").write_bytes(mine)
    (box.far / "far").write_bytes(far)
    url = box.api.http.post("/files/upload", content=uploaded).json()["access_url"]
    loras = [
        {"path": "mine", "scale": 0.7},
        {"path": f"{box.origin}/far", "scale": 1 / 3},
        {"path": url, "scale": 1.2},
    ]
    kept = box.api.submit(ENDPOINT, {**INPUT, "loras": loras})
    box.api.wait(kept)
    assert box.api.result(kept).status_code == 200
    (box.far / "far").unlink()
    receipt = tmp_path / "receipt.json"
    code, printed, errors = command(box.server, demo_model, "receipt", kept.rpartition("/")[2])
    assert code == 0, errors
    receipt.write_text(printed)
    code, printed, errors = command(box.server, demo_model, "replay", str(receipt))
    assert code == 0, errors + printed
    assert "identical" in printed
    (box.folder / "mine.safetensors").write_bytes(make_lora(0.2))
    code, printed, errors = command(box.server, demo_model, "replay", str(receipt))
    assert code != 0
    digest = hashlib.sha256(mine).hexdigest()[:12]
    assert f"mine (sha256 {digest}...) is not here any more" in errors
    (tmp_path / "mine").write_bytes(mine)
    offered = ("replay", str(receipt), "--lora", str(tmp_path / "mine"))
    code, printed, errors = command(box.server, demo_model, *offered)
    assert code == 0, errors
