"""Realtime with fal's own clients: over TLS, through every kit, by token and by key."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import RunningServer
from tests.contract.conftest import SMALL_INPUTS, Api, check_image, run_python_client, skip_or_fail
from tests.contract.test_kits import JS, output_of, python, run_by_proxy, run_mapped
from tests.contract.test_stream import strip

ENDPOINT, ELSEWHERE = "fal-ai/flux-2/flash", "fal-ai/flux-2-flex"
INPUT = {**SMALL_INPUTS[ENDPOINT], "output_format": "jpeg"}
WRONG = {"prompt": "A", "num_images": 9}

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def expected(api: Api) -> tuple[Answer, bytes]:
    """Return the queue's result for the same input, and the pixels of its image."""
    kept = api.submit(ENDPOINT, INPUT)
    api.wait(kept)
    result = api.result(kept).json()
    return result, check_image(api, result["images"][0], (512, 512), "jpeg").tobytes()


def check_answer(answer: Answer, expected: tuple[Answer, bytes], tag: str | None = None) -> None:
    """Check that an answer is the queue's, but for its image, which is in it."""
    result, pixels = expected
    assert answer.pop("request_id", None) == tag
    (image,) = answer.pop("images")
    assert {**answer, "timings": None} == {
        name: value for name, value in strip(result).items() if name != "images"
    }
    assert set(image) == {"content", "content_type", "width", "height"}
    assert (image["content_type"], image["width"], image["height"]) == ("image/jpeg", 512, 512)
    assert Image.open(io.BytesIO(base64.b64decode(image["content"]))).tobytes() == pixels


def check_python(found: Any, expected: tuple[Answer, bytes]) -> None:
    """Check what the Python script prints."""
    for answer, tag in zip(found["answers"], ("one", "two"), strict=True):
        check_answer(answer, expected, tag)
    assert found["wrong"]["error"] == "INVALID_INPUT"
    assert found["wrong"]["reason"].startswith("body.num_images: ")
    assert found["wrong"]["payload"]["detail"][0]["loc"] == ["body", "num_images"]
    check_answer(found["after"], expected)
    check_answer(found["async"], expected)


def test_python_client_by_settings(server: RunningServer, expected: tuple[Answer, bytes]) -> None:
    """Over TLS, with the key: its host for tokens is built in."""
    found = run_python_client(server, "realtime.py", ENDPOINT, INPUT, WRONG, False)
    check_python(found, expected)


def test_python_client_through_the_proxy(
    server: RunningServer, expected: tuple[Answer, bytes]
) -> None:
    """Over TLS, with a token, as it does by default."""
    found = run_by_proxy(server, python("realtime.py", ENDPOINT, INPUT, WRONG, True))
    check_python(found, expected)


def test_clients_with_mapped_names_and_keys(
    demo_model: Path, tmp_path: Path, expected: tuple[Answer, bytes]
) -> None:
    """As they come, by tokens of a server that asks for a key; JavaScript renews a bad one."""
    script = ["node", "--experimental-websocket", str(JS / "realtime.mjs"), ENDPOINT, ELSEWHERE]
    if not (JS / "node_modules" / "@fal-ai" / "client").is_dir() or not shutil.which("node"):
        skip_or_fail("node, or the client's package, is not installed")
    programs = {
        "python": python("realtime.py", ENDPOINT, INPUT, WRONG, True),
        "node": [*script, json.dumps(INPUT), json.dumps(WRONG)],
    }
    ended = run_mapped(tmp_path, demo_model, programs, FLUX2_API_KEY="some:key")
    check_python(json.loads(output_of(ended["python"])), expected)
    found = json.loads(output_of(ended["node"]))
    check_answer(found["first"]["result"], expected, "first")
    assert found["wrong"]["error"]["message"].startswith("INVALID_INPUT: body.num_images: ")
    assert found["wrong"]["error"]["body"]["status_code"] == 422
    check_answer(found["after"]["result"], expected)
    refusal = found["refused"]["error"]
    assert (refusal["status"], "Unauthorized" in refusal["message"]) == (1008, True)
    check_answer(found["renewed"]["result"], expected)
    assert found["asked"] == [f"{ENDPOINT}/realtime"] * 2
    assert strip(found["stream"]) == strip(expected[0])
