"""The real `openai` client on the second door, `/v1/images`."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import RunningServer
from tests.contract.clients.conftest import DENIED, KEY, run_client
from tests.contract.conftest import Api, make_picture_uri

PLAIN = "fal-ai/flux-2"
SAME = {"prompt": "A lighthouse", "seed": 5, "image_size": "square", "num_inference_steps": 4}


@pytest.fixture(scope="module")
def told(keyed: RunningServer, picture: Path) -> dict[str, Any]:
    """Return what the client got from a server with a key."""
    arguments = (f"{keyed.http}/v1", KEY, DENIED, picture)
    found: dict[str, Any] = run_client("openai", "openai_images.py", *arguments, env={})
    return found


def pixels(api: Api, image: dict[str, Any], file_format: str = "PNG") -> bytes:
    """Return the pixels of an image of an answer, in either form, and never in both."""
    assert (image["url"] is None) != (image["b64_json"] is None)
    if image["url"]:
        data = api.http.get(image["url"]).raise_for_status().content
    else:
        data = base64.b64decode(image["b64_json"], validate=True)
    with Image.open(io.BytesIO(data)) as found:
        assert found.format == file_format
        return found.tobytes()


def fal_pixels(api: Api, endpoint_id: str, **changes: Any) -> list[bytes]:
    """Return what fal's own synchronous route gives."""
    answer = api.run(endpoint_id, {**SAME, **changes}).raise_for_status().json()
    return [
        pixels(api, {"url": image["url"], "b64_json": None}, image["content_type"][6:].upper())
        for image in answer["images"]
    ]


def test_both_forms_of_an_answer_are_fal_s_own_image(keyed_api: Api, told: dict[str, Any]) -> None:
    """URL and base64 are the image that the endpoint gives for this seed on fal's route.

    `gpt-image-1`, which tools have built in, means the same, and is answered in base64 unasked.
    """
    (expected,) = fal_pixels(keyed_api, PLAIN)
    for way in ("url", "b64"):
        answer = told["made"][way]
        (image,) = answer["data"]
        assert pixels(keyed_api, image) == expected, way
        assert image["revised_prompt"] is None
        assert answer["created"] > 1_700_000_000
    assert told["made"]["url"]["data"][0]["url"].startswith("http://127.0.0.1:")


def test_base64_leaves_no_file(keyed: RunningServer, keyed_api: Api) -> None:
    """As with fal's `sync_mode`; a URL leaves one."""
    files = keyed.data_dir / "files"

    def names(form: str) -> set[Path]:
        before = set(files.iterdir())
        body: dict[str, Any] = {"prompt": "A", "size": "512x512", "response_format": form}
        body["num_inference_steps"] = 4
        keyed_api.http.post("/v1/images/generations", json=body).raise_for_status()
        return set(files.iterdir()) - before

    assert names("b64_json") == set()
    assert len(names("url")) == 1


def test_several_images_and_no_name(keyed_api: Api, told: dict[str, Any]) -> None:
    """`n` images in the format that was asked for, of the default, less exact for less quality."""
    made = [pixels(keyed_api, image, "JPEG") for image in told["made"]["two"]["data"]]
    assert made == fal_pixels(
        keyed_api, PLAIN, num_images=2, output_format="jpeg", acceleration="high"
    )
    assert len(set(made)) == 2


def test_edits_use_every_image_of_the_form(keyed_api: Api, told: dict[str, Any]) -> None:
    """One and two uploaded files, at the edit endpoint that belongs to the model."""
    uri = make_picture_uri()
    (one,) = fal_pixels(keyed_api, f"{PLAIN}/edit", image_urls=[uri])
    (two,) = fal_pixels(keyed_api, f"{PLAIN}/edit", image_urls=[uri, uri])
    made = {way: pixels(keyed_api, told["made"][way]["data"][0]) for way in ("edit", "edit_two")}
    assert made == {"edit": one, "edit_two": two}
    assert one != two


def test_edits_as_other_tools_send_them(keyed_api: Api, picture: Path) -> None:
    """A form with fields left empty, a form with a URL, and JSON: all the same edit."""
    uri = make_picture_uri()
    (expected,) = fal_pixels(keyed_api, f"{PLAIN}/edit", image_urls=[uri])
    fields = {"prompt": "A lighthouse", "seed": "5", "num_inference_steps": "4", "size": "512x512"}
    file = {"image[0]": ("x", picture.read_bytes(), "image/png")}
    json_images = {"images": [{"image_url": uri}]}
    for sent in (
        {"data": {**fields, "n": "1", "quality": "", "model": ""}, "files": file},
        {"data": fields, "files": {"image": (None, uri)}},
        {"json": {**fields, **json_images}},
    ):
        answer = keyed_api.http.post("/v1/images/edits", **sent).raise_for_status().json()
        ((_, url),) = answer["data"][0].items()
        assert pixels(keyed_api, {"url": url, "b64_json": None}) == expected


@pytest.mark.parametrize(
    ("mistake", "raised", "status", "param", "code", "words"),
    [
        ("size", "BadRequestError", 400, "size", "greater_than_equal", "512"),
        ("size_word", "BadRequestError", 400, "size", "invalid_value", "1024x768"),
        ("number", "BadRequestError", 400, "n", "less_than_equal", "4"),
        ("model", "NotFoundError", 404, None, "model_not_found", "'flux-9'"),
        ("mask", "BadRequestError", 400, "mask", "invalid_value", "no mask"),
        ("not_an_image", "BadRequestError", 400, "image", "unsupported_image_format", "format"),
        ("key", "AuthenticationError", 401, None, "invalid_api_key", "key"),
        ("policy", "BadRequestError", 400, "prompt", "content_policy_violation", "prompt"),
    ],
)
def test_mistakes_raise_what_openai_s_users_catch(
    told: dict[str, Any],
    mistake: str,
    raised: str,
    status: int,
    param: str | None,
    code: str,
    words: str,
) -> None:
    """Class, status, field and code are OpenAI's, and every answer has a request id."""
    found = told["failed"][mistake]
    assert (found["class"], found["status"]) == (raised, status)
    assert (found["param"], found["code"]) == (param, code)
    assert words in found["message"]
    assert found["request_id"]


def test_version(told: dict[str, Any]) -> None:
    """The client is the one that is pinned."""
    assert told["version"] == "3.57.0"
