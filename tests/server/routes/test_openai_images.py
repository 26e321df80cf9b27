"""The images that edits in OpenAI's form bring, in JSON and in forms."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from pipelines.types import Model
from server.app import create_app
from server.catalogue import CATALOGUE
from server.offer import Offer
from server.routes.openai_images import _translate_form, _urls_in
from server.settings import Settings

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = "http://a/1", "http://a/2", "http://a/3"


@pytest.mark.parametrize(
    ("fields", "urls"),
    [
        ({"image": ONE}, [ONE]),
        ({"image": [ONE, TWO]}, [ONE, TWO]),
        ({"images": [{"image_url": ONE}, TWO], "image": THREE}, [ONE, TWO, THREE]),
        ({"image_urls": [ONE]}, [ONE]),
        ({"image_urls": [THREE], "image": TWO, "images": [{"image_url": ONE}]}, [ONE, TWO, THREE]),
        ({"images": [], "image": "", "image_urls": None}, []),
        ({"images": [{"file_id": "x"}], "image": 5}, [None, 5]),
        ([], []),
    ],
)
def test_every_image_of_a_json_body_counts(fields: Any, urls: list[Any]) -> None:
    """By all three names at once, none of them in the place of another."""
    assert _urls_in(fields) == urls


@pytest.mark.parametrize("names", [["image", "image[]", "image[0]"], ["images[]", "image_urls[1]"]])
def test_every_image_of_a_form_counts(names: list[str]) -> None:
    """By the same names, with brackets or without."""
    parts = [("prompt", (None, "A")), *((name, (None, ONE)) for name in names)]
    request = httpx2.Request("POST", "http://box", files=parts)
    offer = Offer(tuple(Model), tuple(CATALOGUE))
    asked = _translate_form(bytearray(request.read()), request.headers["content-type"], offer)
    assert asked.body["image_urls"] == [ONE] * len(names)


async def test_images_of_all_names_together_are_counted(
    make_settings: Callable[..., Settings],
) -> None:
    """One too many is refused before anything is accepted."""
    transport = httpx2.ASGITransport(create_app(make_settings()))
    body = {"prompt": "A", "images": [ONE, TWO], "image": THREE, "image_urls": [ONE, TWO]}
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.post("/v1/images/edits", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "image"
    assert "at most 4" in answer.json()["error"]["message"]
