"""LoRAs in inputs: what a list of them may be, and the gallery's own."""

from typing import Any

import pytest

from server.catalogue import CATALOGUE
from server.errors import InputError
from server.family.endpoint import AskedLora
from server.family.loras import angles_prompt
from server.routes.openapi import build_document

TAKING = [endpoint.id for endpoint in CATALOGUE.values() if endpoint.takes_loras]
ANGLES = "fal-ai/flux-2-lora-gallery/multiple-angles"
PICTURE = "data:image/png;base64,AAAA"


def parse(endpoint_id: str, **fields: Any) -> tuple[AskedLora, ...]:
    """Validate an input; return its LoRAs."""
    body = {"prompt": "x", "image_urls": [PICTURE], **fields}
    return CATALOGUE[endpoint_id].parse(body).loras


@pytest.mark.parametrize("endpoint_id", TAKING)
def test_loras_are_heard_in_their_order(endpoint_id: str) -> None:
    """Up to three, each as strong as it was trained unless it says otherwise; none by default."""
    assert parse(endpoint_id) == parse(endpoint_id, loras=[]) == ()
    loras = [{"path": "a"}, {"path": "b", "scale": 0}, {"path": "c", "scale": 4, "more": "ignored"}]
    expected = (AskedLora("a", 1), AskedLora("b", 0), AskedLora("c", 4))
    assert parse(endpoint_id, loras=loras) == expected


@pytest.mark.parametrize(
    ("loras", "kind", "place"),
    [
        ([{"path": "a"}] * 4, "too_long", ["loras"]),
        ([{"path": "a"}, {}], "missing", ["loras", 1, "path"]),
        ([{"path": None}], "string_type", ["loras", 0, "path"]),
        ([{"path": "a", "scale": 4.01}], "less_than_equal", ["loras", 0, "scale"]),
        ([{"path": "a", "scale": -0.1}], "greater_than_equal", ["loras", 0, "scale"]),
        ([{"path": "a", "scale": float("nan")}], "finite_number", ["loras", 0, "scale"]),
        ([{"path": "\ud800"}], "string_unicode", ["loras", 0, "path"]),
        (["a"], "model_attributes_type", ["loras", 0]),
        ({"path": "a"}, "list_type", ["loras"]),
        (None, "list_type", ["loras"]),
    ],
)
def test_each_mistake_in_them_is_told_at_its_place(
    loras: Any, kind: str, place: list[str | int]
) -> None:
    """As pydantic tells it, and so fal."""
    with pytest.raises(InputError) as caught:
        parse(TAKING[0], loras=loras)
    (item,) = caught.value.body["detail"]
    assert (item["type"], item["loc"]) == (kind, ["body", *place])


def test_an_endpoint_without_loras_ignores_them() -> None:
    """As any other key that it does not know."""
    assert parse("fal-ai/flux-2", loras=[{"path": "a"}]) == ()


@pytest.mark.parametrize("endpoint_id", [id_ for id_ in CATALOGUE if "gallery" in id_])
def test_the_gallery_puts_on_its_own(endpoint_id: str) -> None:
    """The operator's of its name, as strongly as `lora_scale` says, whatever else is sent."""
    name = endpoint_id.removeprefix("fal-ai/")
    assert parse(endpoint_id) == (AskedLora(name, 1),)
    scaled = parse(endpoint_id, lora_scale=0.5, loras=[{"path": "a"}])
    assert scaled == (AskedLora(name, 0.5),)


@pytest.mark.parametrize(
    ("angles", "prompt"),
    [
        ((0, 0, 5), "<sks> front view eye-level shot medium shot"),
        ((90, 60, 0), "<sks> right side view high-angle shot wide shot"),
        ((180, 30, 10), "<sks> back view elevated shot close-up"),
        ((270, 14, 2), "<sks> left side view eye-level shot wide shot"),
        ((315, 46, 8), "<sks> front-left quarter view high-angle shot close-up"),
        ((22, 0, 5), "<sks> front view eye-level shot medium shot"),
        ((23, 0, 5), "<sks> front-right quarter view eye-level shot medium shot"),
        ((360, 0, 5), "<sks> front view eye-level shot medium shot"),
    ],
)
def test_the_prompt_of_angles(angles: tuple[float, float, float], prompt: str) -> None:
    """The nearest of the words that such LoRAs are trained on."""
    names = ("horizontal_angle", "vertical_angle", "zoom")
    values = dict(zip(names, angles, strict=True))
    assert angles_prompt(values) == prompt
    order = CATALOGUE[ANGLES].parse({"image_urls": [PICTURE], **values})
    assert (order.prompt, order.needs_size) == (prompt, True)


@pytest.mark.parametrize(
    ("name", "most"), [("horizontal_angle", 360), ("vertical_angle", 60), ("zoom", 10)]
)
def test_the_ranges_of_angles(name: str, most: float) -> None:
    """Those of fal's page."""
    for value in (0, most):
        parse(ANGLES, **{name: value})
    for value in (-0.1, most + 0.1):
        with pytest.raises(InputError):
            parse(ANGLES, **{name: value})


def test_the_document_shows_them() -> None:
    """With their own form, for a playground."""
    schemas = build_document(CATALOGUE[TAKING[0]], "http://box")["components"]["schemas"]
    loras = schemas["Flux2LoraInput"]["properties"]["loras"]
    assert (loras["maxItems"], loras["default"]) == (3, [])
    assert loras["items"] == {"$ref": "#/components/schemas/LoRAInput"}
    scale = schemas["LoRAInput"]["properties"]["scale"]
    assert (scale["default"], scale["minimum"], scale["maximum"]) == (1, 0, 4)
