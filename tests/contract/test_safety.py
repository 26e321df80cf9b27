"""No way leads an image past the checker: every endpoint, door and number of images.

The checker is a real vision transformer that fires on red, and the pipeline paints in one colour,
whose red is the seed: 255 is flagged, and the next seeds, which begin again at 0, are not.
"""

import base64
import io
import json
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import SMALL_INPUTS, Api, connect, poll_until, read_url
from tests.contract.fault_server import start_fault_server

RED = 255
FLAGGED_SEED = RED
ENDPOINTS = tuple(SMALL_INPUTS)
BLACK = (0, 0, 0)

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


class Inbox(BaseHTTPRequestHandler):
    """Keeps what webhooks bring."""

    bodies: list[dict[str, Any]]

    def do_POST(self) -> None:
        """Take one."""
        length = int(self.headers["content-length"])
        self.bodies.append(json.loads(self.rfile.read(length)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def inbox() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Return the URL of a webhook receiver and what it has got."""
    bodies: list[dict[str, Any]] = []
    handler = type("Here", (Inbox,), {"bodies": bodies})
    with HTTPServer(("127.0.0.1", 0), handler) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{receiver.server_port}/", bodies
        receiver.shutdown()


@pytest.fixture(scope="module")
def checked(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server that checks all images, with a quarantine."""
    folder = tmp_path_factory.mktemp("checked")
    running = start_fault_server(
        start_server,
        folder / "data",
        FLUX2_SAFETY="required",
        FLUX2_SAFETY_QUARANTINE=str(folder / "quarantine"),
        FLUX2_WEBHOOK_ALLOW="127.0.0.1",
    )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def api(checked: RunningServer) -> Iterator[Api]:
    """Return plain calls on it."""
    with connect(checked) as http:
        yield Api(http)


@pytest.fixture(params=["synchronous", "sync_mode", "queue", "webhook"])
def ask(request: pytest.FixtureRequest, api: Api, inbox: tuple[str, list[Any]]) -> Ask:
    """Return a way to have an input made; it gives the answer."""
    url, bodies = inbox

    def run(endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = api.run(endpoint_id, body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def queue(endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
        kept = api.submit(endpoint_id, body)
        api.wait(kept)
        return dict(api.result(kept).json())

    def webhook(endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = api.http.post(f"/queue/{endpoint_id}", params={"fal_webhook": url}, json=body)
        request_id = answer.json()["request_id"]

        def find() -> dict[str, Any] | None:
            found = [body for body in bodies if body["request_id"] == request_id]
            return found[0]["payload"] if found else None

        return poll_until(find, "the webhook comes")

    return {
        "synchronous": run,
        "sync_mode": lambda endpoint_id, body: run(endpoint_id, {**body, "sync_mode": True}),
        "queue": queue,
        "webhook": webhook,
    }[request.param]


def colours(api: Api, answer: dict[str, Any]) -> list[Any]:
    """Return the colour of each image, as a caller gets it."""
    found = []
    for image in answer["images"]:
        with Image.open(io.BytesIO(read_url(api, image))) as picture:
            assert picture.size == (image["width"], image["height"])
            found.append(picture.convert("RGB").getpixel((3, 3)))
    return found


@pytest.mark.parametrize("endpoint_id", ENDPOINTS)
@pytest.mark.parametrize("num_images", [1, 4])
def test_a_flagged_image_never_leaves(
    api: Api, ask: Ask, endpoint_id: str, num_images: int
) -> None:
    """A black one does in its place, its neighbours as they are, and the flags line up."""
    body = {
        **SMALL_INPUTS[endpoint_id],
        "prompt": "now",
        "seed": FLAGGED_SEED,
        "output_format": "png",
        "enable_safety_checker": False,  # which does not count where a check is required
    }
    is_single = endpoint_id == "fal-ai/flux-2-flex"  # whose input has no number of images
    count = 1 if is_single else num_images
    answer = ask(endpoint_id, body if is_single else {**body, "num_images": num_images})
    assert colours(api, answer) == [BLACK, BLACK, (1, 0, 0), (2, 0, 0)][:count]
    if not is_single:
        assert answer["has_nsfw_concepts"] == [True, False, False, False][:count]


def test_openai_s_form_tells_a_flagged_image(api: Api) -> None:
    """Alone it is an error that its readers understand; among others it is black in its place."""

    def draw(number: int) -> httpx2.Response:
        body = {"prompt": "now", "seed": FLAGGED_SEED, "n": number, "size": "512x512"}
        return api.http.post("/v1/images/generations", json={**body, "model": "gpt-image-1"})

    alone = draw(1)
    assert (alone.status_code, alone.json()["error"]["code"]) == (400, "content_policy_violation")
    assert "x-flux2-settings" in alone.headers, "it was made"
    images = [image["b64_json"] for image in draw(3).raise_for_status().json()["data"]]
    urls = [f"data:image/png;base64,{payload}" for payload in images]
    entry = {"content_type": "image/png", "width": 512, "height": 512}
    answer = {"images": [{**entry, "url": url} for url in urls]}
    assert colours(api, answer) == [BLACK, BLACK, (1, 0, 0)]


def test_blocked_images_are_nowhere_but_in_the_quarantine(api: Api, checked: RunningServer) -> None:
    """Whatever was stored is safe; what was blocked can be reviewed by the operator alone."""
    kept = api.submit("fal-ai/flux-2", {**SMALL_INPUTS["fal-ai/flux-2"], "seed": FLAGGED_SEED})
    api.wait(kept)
    for path in (checked.data_dir / "files").rglob("*.*"):
        with Image.open(path) as picture:
            red, _, _ = picture.convert("RGB").getpixel((3, 3))  # type: ignore[misc]
        assert red < RED // 2
    quarantine = checked.data_dir.parent / "quarantine"
    (mine,) = [path for path in quarantine.rglob("*.png") if kept.rsplit("/", 1)[1] in path.name]
    assert stat.S_IMODE(mine.stat().st_mode) == 0o600
    with Image.open(mine) as picture:
        assert picture.convert("RGB").getpixel((3, 3)) == (RED, 0, 0)


def test_every_verdict_is_counted(api: Api) -> None:
    """By its reason."""

    def count(reason: str) -> float:
        (line,) = [
            line
            for line in api.http.get("/metrics").text.splitlines()
            if line.startswith(f'flux2_safety_verdicts_total{{reason="{reason}"}}')
        ]
        return float(line.rsplit(" ", 1)[1])

    before = count("nsfw"), count("ok")
    body = {**SMALL_INPUTS["fal-ai/flux-2"], "seed": FLAGGED_SEED, "num_images": 3}
    assert api.run("fal-ai/flux-2", body).status_code == 200
    assert (count("nsfw"), count("ok")) == (before[0] + 1, before[1] + 2)


def test_a_tolerance_is_heard(api: Api) -> None:
    """Flex's `safety_tolerance` lets more pass the higher it is, at every level a little."""
    passed = []
    for tolerance in "12345":
        body = {**SMALL_INPUTS["fal-ai/flux-2-flex"], "prompt": "now", "output_format": "png"}
        body |= {"seed": 129, "safety_tolerance": tolerance}
        (colour,) = colours(api, api.run("fal-ai/flux-2-flex", body).json())
        passed.append(colour != BLACK)
    assert passed == sorted(passed)
    assert passed[0] is False
    assert passed[-1] is True


def test_a_prompt_that_meets_a_criterion_is_refused(api: Api) -> None:
    """As fal refuses content; the criterion is nobody's business but the operator's."""
    answer = api.run("fal-ai/flux-2", {**SMALL_INPUTS["fal-ai/flux-2"], "prompt": "refuse this"})
    assert answer.status_code == 422
    (item,) = answer.json()["detail"]
    assert (item["loc"], item["type"]) == (["body", "prompt"], "content_policy_violation")
    assert "criterion" not in answer.text


@pytest.fixture(scope="module")
def optional(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return a server that checks what its callers do not exempt, reference images too."""
    box = start_fault_server(
        start_server,
        tmp_path_factory.mktemp("optional"),
        FLUX2_SAFETY="optional",
        FLUX2_SAFETY_REFERENCES="true",
    )
    with connect(box) as http:
        yield Api(http)
    box.stop()


@pytest.mark.parametrize("asked", [True, False])
def test_optional_means_that_the_request_decides(optional: Api, asked: bool) -> None:
    """And the flags say what was done."""
    body = {**SMALL_INPUTS["fal-ai/flux-2"], "seed": FLAGGED_SEED, "output_format": "png"}
    answer = optional.run("fal-ai/flux-2", {**body, "enable_safety_checker": asked}).json()
    assert colours(optional, answer) == [BLACK if asked else (RED, 0, 0)]
    assert answer["has_nsfw_concepts"] == [asked]


def test_reference_images_may_have_to_pass_too(optional: Api) -> None:
    """The first that is flagged is named, and nothing is made of any."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (RED, 0, 0)).save(buffer, "PNG")
    red = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    body = {**SMALL_INPUTS["fal-ai/flux-2/flash/edit"], "seed": 1}
    body["image_urls"] = [*body["image_urls"], red]
    answer = optional.run("fal-ai/flux-2/flash/edit", body)
    assert answer.status_code == 422
    (item,) = answer.json()["detail"]
    assert item["loc"] == ["body", "image_urls", 1]
    assert item["type"] == "content_policy_violation"
    exempt = {**body, "enable_safety_checker": False}
    assert optional.run("fal-ai/flux-2/flash/edit", exempt).status_code == 200
