"""Realtime with fal's own clients: over TLS, through every kit, by token and by key."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import Api, check_image, connect, run_python_client, skip_or_fail
from tests.contract.fault_server import ENDPOINT, INSTANT, fault_environment, start_fault_server
from tests.contract.test_kits import JS, output_of, python, run_by_proxy, run_mapped
from tests.contract.test_stream import strip

ELSEWHERE = "fal-ai/flux-2-flex"
INPUT = {**INSTANT, "output_format": "jpeg"}
WRONG = {"prompt": "A", "num_images": 9}

Answer = dict[str, Any]
Expected = tuple[Answer, bytes]


@pytest.fixture(scope="module")
def box(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server with TLS and its proxy."""
    server = start_fault_server(
        start_server,
        tmp_path_factory.mktemp("data"),
        FLUX2_TLS_PORT="0",
        FLUX2_CONNECT_PORT="0",
    )
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def expected(box: RunningServer) -> Expected:
    """Return the queue's result for the same input, and the pixels of its image."""
    with connect(box) as http:
        api = Api(http)
        kept = api.submit(ENDPOINT, INPUT)
        api.wait(kept)
        result = api.result(kept).json()
        return result, check_image(api, result["images"][0], (512, 512), "jpeg").tobytes()


def check_answer(answer: Answer, expected: Expected, tag: str | None = None) -> None:
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


def check_python(found: Any, expected: Expected) -> None:
    """Check what the Python script prints."""
    for answer, tag in zip(found["answers"], ("one", "two"), strict=True):
        check_answer(answer, expected, tag)
    assert found["wrong"]["error"] == "INVALID_INPUT"
    assert found["wrong"]["reason"].startswith("body.num_images: ")
    assert found["wrong"]["payload"]["detail"][0]["loc"] == ["body", "num_images"]
    check_answer(found["after"], expected)
    check_answer(found["async"], expected)


def test_python_client_by_settings(box: RunningServer, expected: Expected) -> None:
    """Over TLS, blocking and async, with the key: its host for tokens is built in."""
    check_python(run_python_client(box, "realtime.py", ENDPOINT, INPUT, WRONG, False), expected)


def test_python_client_through_the_proxy(box: RunningServer, expected: Expected) -> None:
    """Over TLS, with a token, as it does by default; nothing but the printed recipe is set."""
    check_python(run_by_proxy(box, python("realtime.py", ENDPOINT, INPUT, WRONG, True)), expected)


def test_clients_with_mapped_names_and_keys(
    demo_model: Path, tmp_path: Path, expected: Expected
) -> None:
    """As they come, by tokens of a server that asks for a key; JavaScript renews a bad one."""
    if not (JS / "node_modules" / "@fal-ai" / "client").is_dir() or not shutil.which("node"):
        skip_or_fail("node, or the client's package, is not installed")
    script = ["node", "--experimental-websocket", str(JS / "realtime.mjs"), ENDPOINT, ELSEWHERE]
    programs = {
        "python": python("realtime.py", ENDPOINT, INPUT, WRONG, True),
        "node": [*script, json.dumps(INPUT), json.dumps(WRONG)],
    }
    settings = {**fault_environment(), "FLUX2_API_KEY": "some:key"}
    ended = run_mapped(tmp_path, demo_model, programs, **settings)
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
