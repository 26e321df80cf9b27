"""Every endpoint of fal's FLUX.2 family but for realtime: inputs, ranges and outputs.

The table was written from fal's registry, pages and types, not from the server's catalogue. The
pages of the first five are held to the letter, over HTTP, by tests/contract/test_seeds.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pipelines.types import Acceleration, Model
from server.catalogue import CATALOGUE
from server.errors import InputError
from server.family.dev import TURBO_SIGMAS
from server.family.endpoint import Order
from server.routes.openapi import build_document

PICTURE = "data:image/png;base64,AAAA"
PRESETS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `ranges` has default, least and most, `options` the default first and then all, `others` just
    defaults. `size` is the default size, None where the field has none. Of the images `used` are
    used; `refused` is the smallest number that is too many. `drawn` is what the pipeline is told
    by default: steps and guidance.
    """

    category: str
    model: Model
    ranges: Mapping[str, tuple[float, float, float]]
    options: Mapping[str, tuple[str, ...]]
    others: Mapping[str, Any]
    outputs: tuple[str, ...]
    drawn: tuple[int, float]
    size: str | None = "landscape_4_3"
    used: int = 0
    refused: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The smallest input."""
        return {"prompt": "x", "image_urls": [PICTURE]} if self.used else {"prompt": "x"}

    @property
    def names(self) -> set[str]:
        """The names of all fields."""
        images = {"image_urls"} if self.used else set()
        sizes = {"prompt", "image_size"}
        return {*self.ranges, *self.options, *self.others} | images | sizes


ALL = ("images", "timings", "seed", "has_nsfw_concepts", "prompt")
SLIM = ("images", "seed")
TEXT, EDIT = "text-to-image", "image-to-image"

COMMON = {"seed": None, "sync_mode": False, "enable_safety_checker": True}
EXPANDS = {**COMMON, "enable_prompt_expansion": False}
PNG = {"output_format": ("png", "jpeg", "png", "webp")}
JPEG = {
    "output_format": ("jpeg", "jpeg", "png"),
    "safety_tolerance": ("2", "1", "2", "3", "4", "5"),
}
LEVELS = {"acceleration": ("regular", "none", "regular", "high")}
IMAGES = {"num_images": (1, 1, 4)}
GUIDANCE = {"guidance_scale": (2.5, 0, 20)}
STEPS = {"num_inference_steps": (28, 4, 50)}
DEV = {**IMAGES, **GUIDANCE, **STEPS}
FLEX = {"guidance_scale": (3.5, 1.5, 10), "num_inference_steps": (28, 2, 50)}
KLEIN = {**IMAGES, "num_inference_steps": (4, 4, 8)}
BASE = {**IMAGES, **STEPS, "guidance_scale": (5, 0, 20)}
NEGATIVE = {**COMMON, "negative_prompt": ""}


def dev(category: str = TEXT, size: str | None = "landscape_4_3") -> Row:
    """[dev] itself."""
    options = {**PNG, **LEVELS}
    used = 4 if category is EDIT else 0
    return Row(category, Model.DEV, DEV, options, EXPANDS, ALL, (28, 2.5), size, used)


def fast(category: str = TEXT, size: str = "landscape_4_3") -> Row:
    """Flash and turbo: no steps, no acceleration."""
    used = 4 if category is EDIT else 0
    ranges = {**IMAGES, **GUIDANCE}
    return Row(category, Model.DEV, ranges, PNG, EXPANDS, ALL, (8, 2.5), size, used)


def klein(model: Model, category: str = TEXT) -> Row:
    """[klein], distilled: no guidance, acceleration or expansion."""
    if category is EDIT:
        return Row(category, model, KLEIN, PNG, COMMON, ALL, (4, 1.0), None, 4, 5)
    return Row(category, model, KLEIN, PNG, COMMON, ALL, (4, 1.0))


def base(model: Model, category: str = TEXT) -> Row:
    """[klein], undistilled."""
    options = {**PNG, **LEVELS}
    if category is EDIT:
        return Row(category, model, BASE, options, NEGATIVE, ALL, (28, 5.0), None, 4, 5)
    return Row(category, model, BASE, options, NEGATIVE, ALL, (28, 5.0))


def pro(drawn: tuple[int, float], category: str = TEXT) -> Row:
    """[pro] and [max], whose steps and guidance are the server's choice."""
    if category is EDIT:
        return Row(category, Model.DEV, {}, JPEG, COMMON, SLIM, drawn, "auto", 8, 9)
    return Row(category, Model.DEV, {}, JPEG, COMMON, SLIM, drawn)


FLEX_OTHERS = {**COMMON, "enable_prompt_expansion": True}


def with_loras(row: Row) -> Row:
    """The same, with LoRAs; of the images of [dev]'s three are used."""
    used = 3 if row.used and row.model is Model.DEV else row.used
    return replace(row, others={**row.others, "loras": []}, used=used)


GALLERY_RANGES = {**DEV, "num_inference_steps": (40, 4, 50), "lora_scale": (1, 0, 2)}
GALLERY_OPTIONS = {**PNG, "acceleration": ("regular", "none", "regular")}
GALLERY_OUTPUTS = ("images", "prompt", "seed")


def gallery(category: str = TEXT) -> Row:
    """A LoRA of the gallery."""
    size, used = (None, 4) if category is EDIT else ("landscape_4_3", 0)
    options, outputs = GALLERY_OPTIONS, GALLERY_OUTPUTS
    ranges, drawn = GALLERY_RANGES, (40, 2.5)
    return Row(category, Model.DEV, ranges, options, COMMON, outputs, drawn, size, used)


TABLE = {
    "fal-ai/flux-2": dev(),
    "fal-ai/flux-2-dev": dev(),
    "fal-ai/flux-2/edit": dev(EDIT, None),
    "fal-ai/flux-2/flash": fast(),
    "fal-ai/flux-2/flash/edit": fast(EDIT, "square_hd"),
    "fal-ai/flux-2/turbo": fast(),
    "fal-ai/flux-2/turbo/edit": fast(EDIT, "square_hd"),
    "fal-ai/flux-2/klein/4b": klein(Model.KLEIN_4B),
    "fal-ai/flux-2/klein/4b/edit": klein(Model.KLEIN_4B, EDIT),
    "fal-ai/flux-2/klein/4b/base": base(Model.KLEIN_4B_BASE),
    "fal-ai/flux-2/klein/4b/base/edit": base(Model.KLEIN_4B_BASE, EDIT),
    "fal-ai/flux-2/klein/9b": klein(Model.KLEIN_9B),
    "fal-ai/flux-2/klein/9b/edit": klein(Model.KLEIN_9B, EDIT),
    "fal-ai/flux-2/klein/9b/base": base(Model.KLEIN_9B_BASE),
    "fal-ai/flux-2/klein/9b/base/edit": base(Model.KLEIN_9B_BASE, EDIT),
    "fal-ai/flux-2-klein/4b": klein(Model.KLEIN_4B),
    "fal-ai/flux-2-flex": Row(TEXT, Model.DEV, FLEX, JPEG, FLEX_OTHERS, SLIM, (28, 3.5)),
    "fal-ai/flux-2-flex/edit": Row(
        EDIT, Model.DEV, FLEX, JPEG, FLEX_OTHERS, SLIM, (28, 3.5), "auto", 8, 9
    ),
    "fal-ai/flux-2-pro": pro((28, 2.5)),
    "fal-ai/flux-2-pro/edit": pro((28, 2.5), EDIT),
    "fal-ai/flux-2-max": pro((50, 4.0)),
    "fal-ai/flux-2-max/edit": pro((50, 4.0), EDIT),
    "fal-ai/flux-2/lora": with_loras(dev()),
    "fal-ai/flux-2/lora/edit": with_loras(dev(EDIT, None)),
    "fal-ai/flux-2/klein/4b/lora": with_loras(klein(Model.KLEIN_4B)),
    "fal-ai/flux-2/klein/4b/edit/lora": with_loras(klein(Model.KLEIN_4B, EDIT)),
    "fal-ai/flux-2/klein/4b/base/lora": with_loras(base(Model.KLEIN_4B_BASE)),
    "fal-ai/flux-2/klein/4b/base/edit/lora": with_loras(base(Model.KLEIN_4B_BASE, EDIT)),
    "fal-ai/flux-2/klein/9b/lora": with_loras(klein(Model.KLEIN_9B)),
    "fal-ai/flux-2/klein/9b/edit/lora": with_loras(klein(Model.KLEIN_9B, EDIT)),
    "fal-ai/flux-2/klein/9b/base/lora": with_loras(base(Model.KLEIN_9B_BASE)),
    "fal-ai/flux-2/klein/9b/base/edit/lora": with_loras(base(Model.KLEIN_9B_BASE, EDIT)),
    **{
        f"fal-ai/flux-2-lora-gallery/{name}": gallery(EDIT)
        for name in (
            "add-background",
            "apartment-staging",
            "face-to-full-portrait",
            "virtual-tryon",
        )
    },
    **{
        f"fal-ai/flux-2-lora-gallery/{name}": gallery()
        for name in (
            *("ballpoint-pen-sketch", "digital-comic-art", "hdr-style", "realism"),
            *("satellite-view-style", "sepia-vintage"),
        )
    },
}
"""`multiple-angles`, which has no prompt, is in test_loras.py."""

EACH = pytest.mark.parametrize("endpoint_id", TABLE)


def parse(endpoint_id: str, **fields: Any) -> Order:
    """Validate the smallest input with these fields beside."""
    return CATALOGUE[endpoint_id].parse({**TABLE[endpoint_id].body, **fields})


def refusal(endpoint_id: str, **fields: Any) -> tuple[str, list[Any], Any]:
    """Return type, place and context of the only mistake in such an input."""
    with pytest.raises(InputError) as caught:
        parse(endpoint_id, **fields)
    (item,) = caught.value.body["detail"]
    return item["type"], item["loc"], item.get("ctx")


@EACH
def test_fields_outputs_and_category(endpoint_id: str) -> None:
    """No field is missing and none is there that fal does not have."""
    endpoint, row = CATALOGUE[endpoint_id], TABLE[endpoint_id]
    assert set(endpoint.input.model_fields) == row.names
    assert tuple(endpoint.output.model_fields) == row.outputs
    assert all(found.is_required() for found in endpoint.output.model_fields.values())
    assert (endpoint.category, endpoint.model) == (row.category, row.model)


@EACH
def test_what_is_required(endpoint_id: str) -> None:
    """The prompt, and the images of an edit; nothing else."""
    with pytest.raises(InputError) as caught:
        CATALOGUE[endpoint_id].parse({})
    found = [(item["type"], item["loc"]) for item in caught.value.body["detail"]]
    names = ["prompt", "image_urls"] if TABLE[endpoint_id].used else ["prompt"]
    assert sorted(found) == sorted(("missing", ["body", name]) for name in names)


@EACH
def test_defaults(endpoint_id: str) -> None:
    """The smallest input is filled up as fal does."""
    row = TABLE[endpoint_id]
    parsed = CATALOGUE[endpoint_id].input.model_validate(row.body).model_dump()
    expected = {
        **{name: values[0] for name, values in row.ranges.items()},
        **{name: values[0] for name, values in row.options.items()},
        **row.others,
        **row.body,
        "image_size": row.size,
    }
    assert parsed == expected


@EACH
def test_what_the_pipeline_is_told(endpoint_id: str) -> None:
    """Steps, guidance and size by default, also where the caller has no say in them."""
    row = TABLE[endpoint_id]
    order = parse(endpoint_id)
    settings = order.settings
    assert (settings.num_inference_steps, settings.guidance_scale) == row.drawn
    assert (order.num_images, settings.negative_prompt, settings.loras) == (1, "", ())
    assert settings.acceleration is Acceleration.REGULAR
    assert settings.flash is ("flash" in endpoint_id or "turbo" in endpoint_id)
    assert settings.sigmas == (TURBO_SIGMAS if settings.flash else None)
    assert settings.expand_prompt is row.others.get("enable_prompt_expansion", False)
    assert settings.safety_tolerance == (2 if "safety_tolerance" in row.options else None)
    if row.size in PRESETS:
        assert (settings.width, settings.height) == PRESETS[row.size]
    else:
        assert order.needs_size
        sized = order.fit_to(420, 300).settings
        assert (sized.width, sized.height) == (416, 288)


def each_range() -> Iterator[tuple[str, str]]:
    """Yield every field that has a range, of every endpoint."""
    for endpoint_id, row in TABLE.items():
        yield from ((endpoint_id, name) for name in row.ranges)


@pytest.mark.parametrize(("endpoint_id", "name"), list(each_range()))
def test_both_sides_of_each_bound(endpoint_id: str, name: str) -> None:
    """The limit itself is taken, the next value is refused with fal's words."""
    _, low, high = TABLE[endpoint_id].ranges[name]
    step = 0.01 if name == "guidance_scale" else 1
    for value in (low, high):
        parse(endpoint_id, **{name: value})
    place = ["body", name]
    below = refusal(endpoint_id, **{name: low - step})
    assert below == ("greater_than_equal", place, {"ge": low})
    above = refusal(endpoint_id, **{name: high + step})
    assert above == ("less_than_equal", place, {"le": high})


@EACH
def test_options(endpoint_id: str) -> None:
    """Each word that fal knows is taken, and no other."""
    for name, (_, *words) in TABLE[endpoint_id].options.items():
        for word in words:
            parse(endpoint_id, **{name: word})
        strange = {"jpeg", "png", "webp", "none", "high", "0", "6", "gif"} - set(words)
        for word in strange:
            kind, place, _ = refusal(endpoint_id, **{name: word})
            assert (kind, place) == ("literal_error", ["body", name])


@EACH
def test_sizes(endpoint_id: str) -> None:
    """Every preset, sides from 512 to 2048, and `auto` or null exactly where it is the default."""
    row = TABLE[endpoint_id]
    for name, (width, height) in PRESETS.items():
        settings = parse(endpoint_id, image_size=name).settings
        assert (settings.width, settings.height) == (width, height)
    for side in ("width", "height"):
        for pixels in (512, 2048):
            settings = parse(endpoint_id, image_size={side: pixels}).settings
            assert getattr(settings, side) == pixels
        for pixels, kind in ((511, "greater_than_equal"), (2049, "less_than_equal")):
            found = refusal(endpoint_id, image_size={side: pixels})
            assert found[:2] == (kind, ["body", "image_size", side])
    for value in (None, "auto"):
        if value == row.size:
            assert parse(endpoint_id, image_size=value).needs_size
        else:
            kind, place, _ = refusal(endpoint_id, image_size=value)
            assert (kind, place) == ("literal_error", ["body", "image_size"])


@EACH
def test_reference_limits(endpoint_id: str) -> None:
    """The first few are used; one too many is dropped, or refused where fal says at most."""
    row = TABLE[endpoint_id]
    urls = [f"https://example.com/{n}.png" for n in range(10)]
    allowed = urls if row.refused is None else urls[: row.refused - 1]
    order = CATALOGUE[endpoint_id].parse({"prompt": "x", "image_urls": allowed})
    assert order.image_urls == tuple(urls[: row.used])
    if row.refused:
        kind, place, ctx = refusal(endpoint_id, image_urls=urls[: row.refused])
        assert (kind, place) == ("too_long", ["body", "image_urls"])
        assert ctx["max_length"] == row.refused - 1
    if row.used:
        assert refusal(endpoint_id, image_urls=[])[:2] == ("too_short", ["body", "image_urls"])


@EACH
def test_every_field_reaches_the_pipeline(endpoint_id: str) -> None:
    """What a caller may say is heard."""
    row = TABLE[endpoint_id]
    said = {
        "num_images": 3,
        "guidance_scale": 7.5,
        "num_inference_steps": 5,
        "acceleration": "none",
        "negative_prompt": "rain",
        "safety_tolerance": "4",
        "enable_prompt_expansion": True,
        "enable_safety_checker": False,
        "sync_mode": True,
        "seed": 11,
        "output_format": "jpeg",
    }
    order = parse(endpoint_id, **said, unknown={"is": "ignored"})
    settings = order.settings
    heard = {
        "num_images": order.num_images,
        "guidance_scale": settings.guidance_scale,
        "num_inference_steps": settings.num_inference_steps,
        "acceleration": settings.acceleration.value,
        "negative_prompt": settings.negative_prompt,
        "safety_tolerance": str(settings.safety_tolerance),
        "enable_prompt_expansion": settings.expand_prompt,
        "enable_safety_checker": settings.check_safety,
        "sync_mode": order.sync_mode,
        "seed": order.seed,
        "output_format": order.output_format.value,
    }
    unsaid = parse(endpoint_id).settings
    for name, value in said.items():
        if name in row.names:
            assert heard[name] == value, name
    if "negative_prompt" not in row.names:
        assert settings.negative_prompt == ""
    if "num_inference_steps" not in row.names:
        assert settings.num_inference_steps == unsaid.num_inference_steps
    if "guidance_scale" not in row.names:
        assert settings.guidance_scale == unsaid.guidance_scale


@EACH
def test_the_document_says_the_same(endpoint_id: str) -> None:
    """Defaults, ranges and options, inline, for a playground or a generator to show."""
    row = TABLE[endpoint_id]
    document = build_document(CATALOGUE[endpoint_id], "http://box/queue")
    schemas = document["components"]["schemas"]
    schema = schemas[f"{CATALOGUE[endpoint_id].title}Input"]
    properties = schema["properties"]
    assert all(found["title"] and found["description"] for found in properties.values())
    for name, (default, low, high) in row.ranges.items():
        found = properties[name]
        assert (found["default"], found["minimum"], found["maximum"]) == (default, low, high)
    for name, (first, *words) in row.options.items():
        assert (properties[name]["default"], properties[name]["enum"]) == (first, words)
    size = properties["image_size"]
    names = ["auto", *PRESETS] if row.size == "auto" else list(PRESETS)
    choice = [{"$ref": "#/components/schemas/ImageSize"}, {"type": "string", "enum": names}]
    assert size["anyOf"] == choice
    assert size.get("default") == row.size
    assert ("default" in size) is (row.size is not None)
    if row.used:
        limits = {key: properties["image_urls"].get(key) for key in ("minItems", "maxItems")}
        assert limits == {"minItems": 1, "maxItems": row.refused and row.refused - 1}
    assert document["info"]["x-fal-metadata"]["category"] == row.category
    output = schemas[f"{CATALOGUE[endpoint_id].title}Output"]
    assert output["x-fal-order-properties"] == list(row.outputs) == output["required"]
