"""Streams of a running server, as fal's clients read them and over bare HTTP."""

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    IMAGE_KEYS,
    SMALL_INPUTS,
    WAIT_SECONDS,
    Api,
    check_image,
    connect,
    kept_path,
    poll_until,
    run_python_client,
    skip_or_fail,
)
from tests.contract.fault_server import ENDPOINT, INSTANT, held, start_fault_server

SCRIPTS = Path(__file__).parent / "js"
WRONG = {"prompt": "A", "num_images": 9}
FREE_FIELDS = {"url", "file_name"}
MANY = 50

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def fault_server(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server whose requests end when the test says so."""
    server = start_fault_server(start_server, tmp_path_factory.mktemp("data"))
    yield server
    assert server.stop() == 0


@pytest.fixture
def box(fault_server: RunningServer) -> Iterator[Api]:
    """Return plain calls on that server."""
    with connect(fault_server) as http:
        yield Api(http)


@pytest.fixture(scope="module")
def node() -> str:
    """Return the path of Node; skip where it or the client's package is not installed."""
    found = shutil.which("node")
    if found is None:
        skip_or_fail("node is not installed")
    if not (SCRIPTS / "node_modules" / "@fal-ai" / "client").is_dir():
        skip_or_fail("@fal-ai/client is not installed: run `npm ci` in tests/contract/js")
    return found


def run_script(node: str, script: str, *arguments: str) -> Any:
    """Run a script of `js/` and return the JSON that it prints."""
    done = subprocess.run(
        [node, script, *arguments],
        cwd=SCRIPTS,
        env={"PATH": os.environ.get("PATH", "")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read_events(answer: httpx2.Response) -> Iterator[str]:
    """Yield the data of each event of an open stream as it comes."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def check_preview(image: Answer) -> Image.Image:
    """Check an image of a partial answer; return the picture."""
    assert set(image) == IMAGE_KEYS
    header, _, payload = image["url"].partition(",")
    assert header == "data:image/jpeg;base64"
    data = base64.b64decode(payload, validate=True)
    assert len(data) == image["file_size"]
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert picture.size == (image["width"], image["height"])
    return picture


def check_events(events: list[Answer], result: Answer) -> None:
    """Check that previews in the shape of the result come first, and then its equal."""
    *partial, last = events
    assert partial
    assert partial[0]["progress"]["step"] <= 3
    for event in partial:
        assert set(event) == {*result, "progress"}
        (image,) = event["images"]
        assert check_preview(image).size == (64, 64)
    assert strip(last) == strip(result)


def strip(answer: Answer) -> Answer:
    """Return an answer without what is never the same in two."""
    images = [
        {name: value for name, value in image.items() if name not in FREE_FIELDS}
        for image in answer["images"]
    ]
    return {**answer, "images": images, "timings": None}


def queue_result(api: Api, endpoint_id: str) -> Answer:
    """Make the same image by the queue."""
    kept = api.submit(endpoint_id, SMALL_INPUTS[endpoint_id])
    api.wait(kept)
    result: Answer = api.result(kept).json()
    return result


@pytest.mark.parametrize("endpoint_id", SMALL_INPUTS)
def test_python_client(api: Api, server: RunningServer, endpoint_id: str) -> None:
    """`stream`, blocking and async, gives previews and then what the queue gives, to the pixel."""
    inputs = SMALL_INPUTS[endpoint_id], {"num_inference_steps": 99}
    found = run_python_client(server, "stream.py", endpoint_id, *inputs)
    result = queue_result(api, endpoint_id)
    expected = check_image(api, result["images"][0], (512, 512), "png")
    for way in ("sync", "async"):
        check_events(found[way], result)
        (image,) = found[way][-1]["images"]
        local = {**image, "url": f"{server.http}/files/{image['file_name']}"}
        assert check_image(api, local, (512, 512), "png").tobytes() == expected.tobytes()
    # The client does not look at the status: what it raises is about the type of the answer.
    assert found["wrong"]["name"] == "SSEError"
    assert found["wrong"]["events"] == 0


def test_javascript_client(api: Api, server: RunningServer, node: str) -> None:
    """`stream` gives the same in both connection modes, and a wrong input is a ValidationError."""
    body, wrong = json.dumps(SMALL_INPUTS[ENDPOINT]), json.dumps(WRONG)
    found = run_script(node, "stream.mjs", server.http, ENDPOINT, body, wrong)
    result = queue_result(api, ENDPOINT)
    for mode in ("server", "client"):
        check_events(found[mode]["events"], result)
        assert found[mode]["done"] == found[mode]["events"][-1]
        assert api.status(kept_path(ENDPOINT, found[mode]["requestId"])).status_code == 200
    assert (found["wrong"]["name"], found["wrong"]["status"]) == ("ValidationError", 422)


def test_every_image_has_its_preview(api: Api) -> None:
    """The images of a partial answer are those begun so far, in their order."""
    body = {**SMALL_INPUTS[ENDPOINT], "num_images": 2}
    with api.http.stream("POST", f"/{ENDPOINT}/stream", json=body) as answer:
        *partial, last = map(json.loads, read_events(answer))
    assert [len(event["images"]) for event in partial] == sorted(
        event["progress"]["image"] for event in partial
    )
    assert len(partial[-1]["images"]) == len(last["images"]) == 2


def test_errors_before_the_first_byte_are_those_of_http(box: Api) -> None:
    """A wrong input, an unknown endpoint, a refused prompt, and a failed request."""
    for path, body, status in (
        (ENDPOINT, WRONG, 422),
        ("fal-ai/no-such-model", INSTANT, 404),
        (ENDPOINT, {**INSTANT, "prompt": "refuse"}, 422),
        (ENDPOINT, {**INSTANT, "prompt": "error"}, 500),
    ):
        answer = box.http.post(f"/{path}/stream", json=body)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-fal-request-id"]
        assert "detail" in answer.json()


def test_later_errors_are_events_that_are_no_json(box: Api) -> None:
    """A request that is cancelled elsewhere ends its stream with an event that says so."""
    with box.http.stream("POST", f"/{ENDPOINT}/stream", json=held()) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kept = kept_path(ENDPOINT, answer.headers["x-fal-request-id"])
        events = read_events(answer)
        assert json.loads(next(events))["images"]
        box.cancel(kept)
        *_, last = events
    with pytest.raises(json.JSONDecodeError):
        json.loads(last)
    assert last.startswith("error 499: ")
    assert json.loads(last.partition(": ")[2])["error_type"] == "client_cancelled"


def test_python_client_raises_later_errors(start_server: StartServer, tmp_path: Path) -> None:
    """A request that fails after its first preview makes `stream` raise, and no secret is told."""
    server = start_fault_server(start_server, tmp_path / "data", FLUX2_TLS_PORT="0")
    body = {**held(), "prompt": f"late {tmp_path / 'gate'}"}
    arguments = ENDPOINT, body, str(tmp_path / "gate")
    found = run_python_client(server, "stream_broken.py", *arguments)
    assert found["events"] >= 1
    assert found["text"].startswith("error 500: ")
    assert "secret" not in found["text"]
    assert server.stop() == 0


def test_javascript_client_raises_later_errors(
    fault_server: RunningServer, box: Api, node: str
) -> None:
    """`done` is rejected when the request is cancelled after the first event."""
    body = json.dumps(held())
    found = run_script(node, "stream_broken.mjs", fault_server.http, ENDPOINT, body)
    assert found["name"] == "SyntaxError"
    assert found["events"] >= 1
    assert box.run(ENDPOINT, INSTANT).status_code == 200


def test_an_instant_result_needs_no_preview(box: Api) -> None:
    """A request that is over before any preview gives its result alone."""
    with box.http.stream("POST", f"/{ENDPOINT}/stream", json=INSTANT) as answer:
        (only,) = map(json.loads, read_events(answer))
    assert strip(only) == strip(box.run(ENDPOINT, INSTANT).json())


def test_fifty_callers_who_leave(fault_server: RunningServer, box: Api) -> None:
    """Each request is cancelled at its next step, and no file or connection is left."""
    files = set((fault_server.data_dir / "files").rglob("*.*"))
    opened = count_open_files(fault_server)
    left = []
    for _ in range(MANY):
        with (
            connect(fault_server) as http,
            http.stream("POST", f"/{ENDPOINT}/stream", json=held()) as answer,
        ):
            assert json.loads(next(read_events(answer)))["progress"]["step"] >= 1
            left.append(kept_path(ENDPOINT, answer.headers["x-fal-request-id"]))
    for kept in left:
        assert box.wait(kept).json()["error_type"] == "client_cancelled"
    poll_until(lambda: count_open_files(fault_server) <= opened, "all connections are closed")
    assert set((fault_server.data_dir / "files").rglob("*.*")) == files
    assert box.run(ENDPOINT, INSTANT).status_code == 200


def count_open_files(server: RunningServer) -> int:
    """Count what the gateway holds open: each of its connections is one of them."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_who_leaves_the_queue_is_cancelled(fault_server: RunningServer, box: Api) -> None:
    """A caller who goes before anything was answered has no request left."""
    running = box.submit(ENDPOINT, held())
    box.wait(running, "IN_PROGRESS")
    with connect(fault_server) as http, pytest.raises(httpx2.TimeoutException):
        http.post(f"/{ENDPOINT}/stream", json=held(), timeout=0.5)
    box.cancel(running)
    box.wait(running)
    answer = poll_until(lambda: box.run(ENDPOINT, INSTANT), "the runner is free for somebody else")
    assert answer.status_code == 200


def test_flagged_previews_are_black(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No preview leaves unchecked where images are checked, and its flag says so."""
    server = start_fault_server(
        start_server, tmp_path_factory.mktemp("data"), FLUX2_SAFETY="required"
    )
    with connect(server) as http:
        for seed, flagged in ((255, True), (60, False)):
            body = {**held(), "seed": seed}
            with http.stream("POST", f"/{ENDPOINT}/stream", json=body) as answer:
                event = json.loads(next(read_events(answer)))
            assert event["has_nsfw_concepts"] == [flagged]
            colour = check_preview(event["images"][0]).getpixel((3, 3))
            assert (colour == (0, 0, 0)) is flagged
    assert server.stop() == 0
