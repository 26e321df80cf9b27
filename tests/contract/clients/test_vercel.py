"""Vercel's AI SDK with its provider for fal, which takes another base URL."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.contract.clients.conftest import KEY
from tests.contract.conftest import SMALL_INPUTS, Api, run_node

PLAIN = "fal-ai/flux-2"


def digests(api: Api, endpoint_id: str, **changes: Any) -> list[str]:
    """Return the digests of the files that plain HTTP gets for the same input."""
    answer = api.run(endpoint_id, {**SMALL_INPUTS[PLAIN], **changes}).raise_for_status().json()
    found = []
    for image in answer["images"]:
        file = api.http.get(image["url"]).raise_for_status()
        found.append(hashlib.sha256(file.content).hexdigest())
    return found


@pytest.fixture(scope="module")
def told(node: str, keyed: RunningServer, keyed_api: Api, picture: Path) -> dict[str, Any]:
    """Return what the SDK got, with the URL of an upload to edit."""
    upload = keyed_api.http.post(
        "/files/upload", content=picture.read_bytes(), headers={"content-type": "image/png"}
    )
    url = upload.raise_for_status().json()["access_url"]
    found: dict[str, Any] = run_node(node, "vercel.mjs", keyed.http, KEY, url)
    return {**found, "url": url}


def test_images_of_a_prompt(keyed_api: Api, told: dict[str, Any]) -> None:
    """Size and seed are heard, and what else is said of the images is passed on.

    For two images the SDK asks twice, with the same seed.
    """
    made = told["made"]
    assert [image["mediaType"] for image in made["images"]] == ["image/png"] * 2
    assert [image["digest"] for image in made["images"]] == digests(keyed_api, PLAIN) * 2
    assert [image["nsfw"] for image in made["metadata"]["images"]] == [False, False]


def test_an_edit_by_url(keyed_api: Api, told: dict[str, Any]) -> None:
    """The image lies on the origin of the base URL, the only private one that the SDK allows."""
    (image,) = told["edited"]["images"]
    assert [image["digest"]] == digests(keyed_api, f"{PLAIN}/edit", image_urls=[told["url"]])


def test_mistakes(told: dict[str, Any]) -> None:
    """A wrong field is told by name, a wrong key by its status."""
    assert told["size"]["status"] == 422
    assert "body.image_size.width" in told["size"]["message"]
    assert told["key"]["status"] == 401
