"""The rest of fal's FLUX.2 family on a running server: edits, and names for [dev].

Fields, defaults and ranges of every endpoint are in tests/server/family/test_table.py.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.conftest import StartServer
from tests.contract.conftest import (
    Api,
    check_image,
    connect,
    make_picture,
    make_picture_uri,
)
from tests.contract.fault_server import start_fault_server

ALIASES = (
    *("fal-ai/flux-2-pro", "fal-ai/flux-2-pro/edit"),
    *("fal-ai/flux-2-max", "fal-ai/flux-2-max/edit"),
)
ALL = ["images", "timings", "seed", "has_nsfw_concepts", "prompt"]
SLIM = ["images", "seed"]
SERVED: dict[str, tuple[list[str], str, tuple[int, int]]] = {
    "fal-ai/flux-2/edit": (ALL, "png", (96, 64)),
    "fal-ai/flux-2/turbo": (ALL, "png", (1024, 768)),
    "fal-ai/flux-2/turbo/edit": (ALL, "png", (1024, 1024)),
    "fal-ai/flux-2-flex/edit": (SLIM, "jpeg", (96, 64)),
    "fal-ai/flux-2-pro": (SLIM, "jpeg", (1024, 768)),
    "fal-ai/flux-2-pro/edit": (SLIM, "jpeg", (96, 64)),
    "fal-ai/flux-2-max": (SLIM, "jpeg", (1024, 768)),
    "fal-ai/flux-2-max/edit": (SLIM, "jpeg", (96, 64)),
}
"""Outputs, format and size of the smallest request; the image to edit has 100x75 pixels."""

LIKE_FAL = {"prompt": "now", "seed": 4}


def smallest(endpoint_id: str) -> dict[str, Any]:
    """Return the smallest input of an endpoint, with a seed."""
    images = {"image_urls": [make_picture_uri(100, 75)]} if endpoint_id.endswith("/edit") else {}
    return {**LIKE_FAL, **images}


@pytest.fixture(scope="module")
def mapped(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return calls on a server that answers to every alias, with images that are there at once."""
    folder = tmp_path_factory.mktemp("mapped")
    server = start_fault_server(start_server, folder, FLUX2_ALIASES=",".join(ALIASES))
    with connect(server) as http:
        yield Api(http)
    assert server.stop() == 0


@pytest.mark.parametrize("endpoint_id", SERVED)
def test_the_smallest_request(mapped: Api, endpoint_id: str) -> None:
    """Synchronously and from the queue: the endpoint's own outputs, format and default size."""
    outputs, file_format, size = SERVED[endpoint_id]
    kept = mapped.submit(endpoint_id, smallest(endpoint_id))
    mapped.wait(kept)
    for answer in (mapped.run(endpoint_id, smallest(endpoint_id)), mapped.result(kept)):
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == outputs
        assert answer.json()["seed"] == 4
        (image,) = answer.json()["images"]
        check_image(mapped, image, size, file_format)


def test_a_stream_ends_with_the_alias_s_own_output(mapped: Api) -> None:
    """The third door: there too [pro] answers in its own form."""
    endpoint_id = "fal-ai/flux-2-pro/edit"
    answer = mapped.http.post(f"/{endpoint_id}/stream", json=smallest(endpoint_id))
    last = answer.text.strip().splitlines()[-1]
    assert last.startswith('data: {"images"')
    assert '"timings"' not in last


def doors(api: Api, endpoint_id: str) -> Iterator[Any]:
    """Ask for an endpoint at every door that there is."""
    body = smallest(endpoint_id)
    yield api.run(endpoint_id, body)
    yield api.http.post(f"/queue/{endpoint_id}", json=body)
    yield api.http.post(f"/{endpoint_id}/stream", json=body)
    yield api.http.get("/api/openapi/queue/openapi.json", params={"endpoint_id": endpoint_id})


@pytest.mark.parametrize("endpoint_id", ALIASES)
def test_an_alias_that_nobody_mapped_is_not_served(api: Api, endpoint_id: str) -> None:
    """No door takes [dev] for [pro] or [max] by itself; each names the setting."""
    for answer in doors(api, endpoint_id):
        assert answer.status_code == 404
        assert set(answer.json()) == {"detail"}
        assert f"FLUX2_ALIASES={endpoint_id}" in answer.json()["detail"]


def test_the_own_document_has_what_is_served(api: Api, mapped: Api) -> None:
    """A client made from it can ask for nothing that is refused."""
    paths = [box.http.get("/openapi.json").json()["paths"] for box in (api, mapped)]
    for endpoint_id in ALIASES:
        found = [f"/{endpoint_id}" in listed for listed in paths]
        assert found == [False, True]


def test_a_refused_input_of_an_alias(mapped: Api) -> None:
    """Its ranges are its own: a ninth image is refused by [pro], as is what [dev] would take."""
    endpoint_id = "fal-ai/flux-2-pro/edit"
    wrong = {**LIKE_FAL, "image_urls": [make_picture_uri()] * 9, "output_format": "webp"}
    answer = mapped.run(endpoint_id, wrong)
    assert answer.status_code == 422
    found = {(item["type"], item["loc"][1]) for item in answer.json()["detail"]}
    assert found == {("too_long", "image_urls"), ("literal_error", "output_format")}


def test_an_edit_without_a_size_is_what_diffusers_makes(api: Api, demo_model: Path) -> None:
    """Size and pixels are those of `Flux2Pipeline`, asked without height and width."""
    body = {
        "prompt": "Take the lid off",
        "image_urls": [make_picture_uri(420, 300)],
        "num_inference_steps": 4,
        "acceleration": "none",
        "seed": 5,
    }
    answer = api.run("fal-ai/flux-2/edit", body)
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    picture = check_image(api, image, (416, 288), "png").convert("RGB")
    expected = draw_with_diffusers(demo_model, body)
    assert ImageChops.difference(picture, expected).getbbox() is None


def draw_with_diffusers(folder: Path, body: dict[str, Any]) -> Image.Image:
    """Make the image of a request with diffusers alone."""
    import torch

    from pipelines.compat import declare_torchvision_operators

    declare_torchvision_operators()
    from diffusers import Flux2Pipeline

    pipe = Flux2Pipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        prompt=body["prompt"],
        image=[Image.open(io.BytesIO(make_picture(420, 300)))],
        num_inference_steps=body["num_inference_steps"],
        guidance_scale=2.5,
        generator=torch.Generator("cpu").manual_seed(body["seed"]),
    )
    picture: Image.Image = output.images[0]
    return picture
