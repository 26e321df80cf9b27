"""The pictures themselves: sizes, formats, seeds, data URIs, and reference images."""

import base64
from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.contract.conftest import Api, check_image, make_picture_uri

FLUX, FLEX, EDIT = "fal-ai/flux-2", "fal-ai/flux-2-flex", "fal-ai/flux-2/flash/edit"
SMALL = {"prompt": "A lighthouse", "num_inference_steps": 4, "image_size": "square"}
SMALL_EDIT = {"prompt": "Paint it blue", "image_size": "square"}
OTHER_HOST = "https://images.example/a.png"
FORMATS = [".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic"]


def make_data_uri(data: bytes, kind: str = "image/png") -> str:
    """Return any bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def generate(api: Api, endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask synchronously for what must succeed; return the answer's body."""
    answer = api.run(endpoint_id, body)
    assert answer.status_code == 200, answer.text
    output: dict[str, Any] = answer.json()
    return output


@pytest.mark.parametrize(
    ("image_size", "pixels"),
    [
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_16_9", (1024, 576)),
        ({"width": 1000}, (992, 512)),
        ({"width": 527, "height": 600}, (512, 592)),
    ],
)
def test_size(api: Api, image_size: Any, pixels: tuple[int, int]) -> None:
    """Presets mean what they mean on fal; odd sides are floored, a side left out is 512."""
    body = {"prompt": "A", "num_inference_steps": 2, "image_size": image_size}
    (image,) = generate(api, FLEX, body)["images"]
    check_image(api, image, pixels, "jpeg")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_output_format(api: Api, output_format: str) -> None:
    """The file is what was asked for, and the seed that was sent comes back."""
    answer = generate(api, FLUX, {**SMALL, "seed": 11, "output_format": output_format})
    assert answer["seed"] == 11
    assert answer["prompt"] == "A lighthouse"
    check_image(api, answer["images"][0], (512, 512), output_format)


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 4])
def test_extreme_seed(api: Api, seed: int) -> None:
    """Each end of the range makes an image, and the number survives the way through JSON."""
    body = {"prompt": "A", "num_inference_steps": 2, "image_size": "square", "seed": seed}
    assert generate(api, FLEX, body)["seed"] == seed


def test_random_seed_can_be_used_again(api: Api) -> None:
    """A seed of null is drawn, below 2^32; sending what was drawn gives the same pixels."""
    drawn = generate(api, FLUX, {**SMALL, "seed": None})
    assert 0 <= drawn["seed"] < 2**32
    again = generate(api, FLUX, {**SMALL, "seed": drawn["seed"]})
    pictures = [check_image(api, one["images"][0], (512, 512), "png") for one in (drawn, again)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_each_of_four_images_is_its_own_request(api: Api) -> None:
    """Image i of a request with seed s has the pixels of a single request with seed s + i."""
    together = generate(api, FLUX, {**SMALL, "seed": 40, "num_images": 4})
    assert together["seed"] == 40
    assert together["has_nsfw_concepts"] == [False] * 4
    pictures = [check_image(api, image, (512, 512), "png") for image in together["images"]]
    alone = [generate(api, FLUX, {**SMALL, "seed": 40 + index})["images"][0] for index in range(4)]
    singles = [check_image(api, image, (512, 512), "png") for image in alone]
    assert [one.tobytes() for one in pictures] == [one.tobytes() for one in singles]
    assert len({one.tobytes() for one in pictures}) == 4


def test_sync_mode_writes_no_file(api: Api, server: RunningServer) -> None:
    """The images come as data URIs inside the answer, also by a later read of the result."""
    before = set(server.data_dir.glob("files/*/*"))
    kept = api.submit(FLUX, {**SMALL, "sync_mode": True, "num_images": 2})
    api.wait(kept)
    for image in api.result(kept).json()["images"]:
        assert image["url"].startswith("data:")
        check_image(api, image, (512, 512), "png")
    assert set(server.data_dir.glob("files/*/*")) == before


def test_reference_image_changes_the_picture(api: Api) -> None:
    """Data URIs in three formats, and the URL of one of the server's own files, all work."""
    first = generate(api, EDIT, {**SMALL_EDIT, "seed": 3, "image_urls": [make_picture_uri()]})
    urls = [first["images"][0]["url"]]
    urls += [make_picture_uri(80, 64, kind) for kind in ("JPEG", "WEBP")]
    second = generate(api, EDIT, {**SMALL_EDIT, "seed": 3, "image_urls": urls})
    pictures = [check_image(api, one["images"][0], (512, 512), "png") for one in (first, second)]
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.parametrize("origin", ["https://v3.fal.media", "https://fal.media:8443"])
def test_own_files_are_known_under_the_names_of_fal(api: Api, origin: str) -> None:
    """A box in fal's place gives out such URLs, and finds its files under them without asking."""
    first = generate(api, EDIT, {**SMALL_EDIT, "seed": 3, "image_urls": [make_picture_uri()]})
    url = first["images"][0]["url"]
    elsewhere = origin + url[url.index("/files/") :]
    answers = [
        generate(api, EDIT, {**SMALL_EDIT, "seed": 4, "image_urls": [one]})
        for one in (url, elsewhere)
    ]
    pictures = [check_image(api, one["images"][0], (512, 512), "png") for one in answers]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize("index", range(4))
def test_a_refused_reference_needs_no_runner(api: Api, busy_runner: str, index: int) -> None:
    """It is told while the runner works for somebody else, for its place in the list."""
    urls = [make_picture_uri()] * 4
    urls[index] = "data:image/png;base64,%%%"
    kept = api.submit(EDIT, {**SMALL_EDIT, "image_urls": urls})
    api.wait(kept)
    result = api.result(kept)
    assert result.status_code == 422
    (item,) = result.json()["detail"]
    assert item["loc"] == ["body", "image_urls", index]
    assert api.status(busy_runner).json()["status"] == "IN_PROGRESS"


def test_only_four_references_are_used(api: Api) -> None:
    """A fifth one is not even looked at."""
    four = [make_picture_uri(64 + 16 * index) for index in range(4)]
    body = {**SMALL_EDIT, "seed": 3}
    answers = [
        generate(api, EDIT, {**body, "image_urls": urls}) for urls in (four, [*four, OTHER_HOST])
    ]
    pictures = [check_image(api, one["images"][0], (512, 512), "png") for one in answers]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize(
    ("url", "kind", "ctx"),
    [
        (OTHER_HOST, "file_download_error", None),
        ("http://127.0.0.1:1/files/", "file_download_error", None),
        ("file:///etc/passwd", "file_download_error", None),
        ("", "file_download_error", None),
        ("data:text/plain,hello", "image_load_error", None),
        ("data:image/png;base64,%%%", "image_load_error", None),
        ("data:image/png;base64,", "unsupported_image_format", {"supported_formats": FORMATS}),
        (make_data_uri(b"hello"), "unsupported_image_format", {"supported_formats": FORMATS}),
        (
            make_picture_uri(file_format="GIF"),
            "unsupported_image_format",
            {"supported_formats": FORMATS},
        ),
        (make_picture_uri(63, 64), "image_too_small", {"min_height": 64, "min_width": 64}),
        (make_picture_uri(64, 63), "image_too_small", {"min_height": 64, "min_width": 64}),
    ],
)
def test_refused_reference(api: Api, url: str, kind: str, ctx: dict[str, Any] | None) -> None:
    """Content errors are fal's: they name the image and carry the page that explains them."""
    body = {**SMALL_EDIT, "image_urls": [make_picture_uri(), url]}
    kept = api.submit(EDIT, body)
    api.wait(kept)
    for answer in (api.run(EDIT, body), api.result(kept)):
        assert answer.status_code == 422
        (item,) = answer.json()["detail"]
        assert item["loc"] == ["body", "image_urls", 1]
        assert item["type"] == kind
        assert item["url"] == f"https://docs.fal.ai/errors#{kind}"
        assert item.get("ctx") == ctx
        assert item["msg"]
        assert list(item) == [*("loc", "msg", "type", "url"), *(["ctx"] if ctx else []), "input"]


def test_truncated_picture(api: Api) -> None:
    """A picture whose header is fine and whose pixels are cut off is a load error."""
    payload = make_picture_uri(256, 256).partition(",")[2]
    cut = make_data_uri(base64.b64decode(payload)[:-200])
    answer = api.run(EDIT, {**SMALL_EDIT, "image_urls": [cut]})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] == "image_load_error"
