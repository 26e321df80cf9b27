"""Every field of every endpoint, as fal's own pages describe it, against a running server.

The tables below were written from those pages, not from the server's catalogue. The page of
`fal-ai/flux-2` exists only without ranges; it is the same model as `fal-ai/flux-2-dev`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract.conftest import Api, check_image, make_picture_uri

PRESETS = (
    *("square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"),
)
FORMATS = ("jpeg", "png", "webp")
PICTURE = "data:image/png;base64,AAAA"
"""Stands for an image wherever a request is refused before its images are looked at."""


@dataclass(frozen=True, slots=True)
class Field:
    """One row of a page's input table; None stands for what the page does not give."""

    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    options: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One endpoint's page. `size` is what the full example's `image_size` means in pixels."""

    inputs: dict[str, Field]
    outputs: tuple[str, ...]
    example: dict[str, Any]
    size: tuple[int, int] = (1024, 768)


# The pages give seeds no range: a signed 64-bit number, with room for the index of four images.
SEED = Field("integer", low=-(2**63), high=2**63 - 4)
PROMPT = Field("string", required=True)
FALSE, TRUE = Field("boolean", default=False), Field("boolean", default=True)
ALL_OUTPUTS = ("images", "timings", "seed", "has_nsfw_concepts", "prompt")

FLASH_INPUTS = {
    "prompt": PROMPT,
    "guidance_scale": Field("float", 2.5, low=0, high=20),
    "seed": SEED,
    "image_size": Field("size", "landscape_4_3"),
    "num_images": Field("integer", 1, low=1, high=4),
    "enable_prompt_expansion": FALSE,
    "sync_mode": FALSE,
    "enable_safety_checker": TRUE,
    "output_format": Field("string", "png", options=FORMATS),
}
DEV = Page(
    inputs={
        "prompt": PROMPT,
        "guidance_scale": Field("float", 2.5, low=0, high=20),
        "seed": SEED,
        "num_inference_steps": Field("integer", 28, low=4, high=50),
        "image_size": Field("size", "landscape_4_3"),
        "num_images": Field("integer", 1, low=1, high=4),
        "acceleration": Field("string", "regular", options=("none", "regular", "high")),
        "enable_prompt_expansion": FALSE,
        "sync_mode": FALSE,
        "enable_safety_checker": TRUE,
        "output_format": Field("string", "png", options=FORMATS),
    },
    outputs=ALL_OUTPUTS,
    example={
        "prompt": "A tilted close-up of a dusty, smiling traveller",
        "guidance_scale": 2.5,
        "num_inference_steps": 28,
        "image_size": "landscape_4_3",
        "num_images": 1,
        "acceleration": "regular",
        "enable_safety_checker": True,
        "output_format": "png",
    },
)
FLASH_EXAMPLE = {
    "prompt": "Ants build a tower of sugar",
    "guidance_scale": 2.5,
    "image_size": "landscape_4_3",
    "num_images": 1,
    "enable_safety_checker": True,
    "output_format": "png",
}
PAGES = {
    "fal-ai/flux-2": DEV,
    "fal-ai/flux-2-dev": DEV,
    "fal-ai/flux-2/flash": Page(FLASH_INPUTS, ALL_OUTPUTS, FLASH_EXAMPLE),
    "fal-ai/flux-2/flash/edit": Page(
        inputs={
            **FLASH_INPUTS,
            "image_size": Field("size", "square_hd"),
            "image_urls": Field("list", required=True),
        },
        outputs=ALL_OUTPUTS,
        example={
            **FLASH_EXAMPLE,
            "prompt": "Take the lid off",
            "image_size": "square_hd",
            "image_urls": [make_picture_uri(96, 64)],
        },
        size=(1024, 1024),
    ),
    "fal-ai/flux-2-flex": Page(
        inputs={
            "prompt": PROMPT,
            "image_size": Field("size", "landscape_4_3"),
            "enable_prompt_expansion": TRUE,
            "seed": SEED,
            "safety_tolerance": Field("string", "2", options=("1", "2", "3", "4", "5")),
            "enable_safety_checker": TRUE,
            "output_format": Field("string", "jpeg", options=("jpeg", "png")),
            "sync_mode": FALSE,
            "guidance_scale": Field("float", 3.5, low=1.5, high=10),
            "num_inference_steps": Field("integer", 28, low=2, high=50),
        },
        outputs=("images", "seed"),
        example={
            "prompt": "A fluffy monster and its doughnut",
            "image_size": "landscape_4_3",
            "enable_prompt_expansion": True,
            "safety_tolerance": "2",
            "enable_safety_checker": True,
            "output_format": "jpeg",
            "guidance_scale": 3.5,
            "num_inference_steps": 28,
        },
    ),
}
EVERY_FIELD = [(page, name) for page in PAGES for name in PAGES[page].inputs]

Refusal = tuple[Any, str, str, dict[str, Any] | None]
"""A wrong value, and pydantic's `type`, `msg` and `ctx` for it."""


def spell(options: tuple[str, ...]) -> str:
    """Write options as pydantic does: 'a', 'b' or 'c'."""
    quoted = [f"'{option}'" for option in options]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def not_an_option(value: Any, options: tuple[str, ...]) -> Refusal:
    """Return what a value that is not among the options is refused with."""
    words = spell(options)
    return value, "literal_error", f"Input should be {words}", {"expected": words}


def beyond(field: Field, step: float) -> Iterator[Refusal]:
    """Yield the nearest values outside the field's range."""
    assert field.low is not None
    assert field.high is not None
    low, high = field.low, field.high
    text = f"Input should be greater than or equal to {low}"
    yield low - step, "greater_than_equal", text, {"ge": low}
    text = f"Input should be less than or equal to {high}"
    yield high + step, "less_than_equal", text, {"le": high}


def refusals(field: Field) -> Iterator[Refusal]:
    """Yield wrong values of a field and what each is refused with, but for sizes and lists."""
    if field.options:
        yield not_an_option("other", field.options)
        yield not_an_option(2, field.options)
    elif field.kind == "string":
        yield 5, "string_type", "Input should be a valid string", None
        yield None, "string_type", "Input should be a valid string", None
    elif field.kind == "boolean":
        text = "Input should be a valid boolean, unable to interpret input"
        yield "maybe", "bool_parsing", text, None
        yield [], "bool_type", "Input should be a valid boolean", None
    elif field.kind == "float":
        text = "Input should be a valid number, unable to parse string as a number"
        yield "much", "float_parsing", text, None
        yield {}, "float_type", "Input should be a valid number", None
        yield from beyond(field, 0.01)
    elif field.kind == "integer":
        text = "Input should be a valid integer, unable to parse string as an integer"
        yield "many", "int_parsing", text, None
        text = "Input should be a valid integer, got a number with a fractional part"
        yield 4.5, "int_from_float", text, None
        yield from beyond(field, 1)


def make_item(refusal: Refusal, *loc: str | int) -> dict[str, Any]:
    """Return the entry of `detail` for a refusal at this place of the body."""
    value, kind, text, ctx = refusal
    item = {"type": kind, "loc": ["body", *loc], "msg": text, "input": value}
    return {**item, "ctx": ctx} if ctx else item


def make_side_item(side: str, value: int) -> dict[str, Any]:
    """Return the entry for one bad side of an `image_size` object."""
    field = Field("integer", low=512, high=2048)
    wrong = next(item for item in beyond(field, 1) if item[0] == value)
    return make_item(wrong, "image_size", side)


def size_cases() -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Yield wrong sizes with their whole `detail`: one entry for each bad side."""
    for preset in ("huge", 7):
        yield preset, [make_item(not_an_option(preset, PRESETS), "image_size")]
    for side in ("width", "height"):
        yield {side: 511}, [make_side_item(side, 511)]
        yield {side: 2049}, [make_side_item(side, 2049)]
        text = "Input should be a valid integer, unable to parse string as an integer"
        wide = make_item(("wide", "int_parsing", text, None), "image_size", side)
        yield {side: "wide"}, [wide]
    both = [make_side_item("width", 511), make_side_item("height", 2049)]
    yield {"width": 511, "height": 2049}, both


def list_cases(name: str) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Yield wrong lists of URLs with their whole `detail`."""
    wrong = ("https://x.test/a.png", "list_type", "Input should be a valid list", None)
    yield wrong[0], [make_item(wrong, name)]
    text = "List should have at least 1 item after validation, not 0"
    ctx = {"field_type": "List", "min_length": 1, "actual_length": 0}
    yield [], [make_item(([], "too_short", text, ctx), name)]
    wrong_item = (5, "string_type", "Input should be a valid string", None)
    yield [PICTURE, 5], [make_item(wrong_item, name, 1)]


def wrong_bodies() -> Iterator[Any]:
    """Yield endpoint, body and expected `detail` for every wrong value of every field."""
    for endpoint_id, name in EVERY_FIELD:
        inputs = PAGES[endpoint_id].inputs
        field = inputs[name]
        whole: dict[str, Any] = {"prompt": "A", "image_urls": [PICTURE]}
        body = {key: value for key, value in whole.items() if key in inputs}
        cases = [(wrong[0], [make_item(wrong, name)]) for wrong in refusals(field)]
        if field.kind == "size":
            cases += size_cases()
        if field.kind == "list":
            cases += list_cases(name)
        for value, detail in cases:
            case_id = f"{endpoint_id}-{name}-{value}"
            yield pytest.param(endpoint_id, {**body, name: value}, detail, id=case_id)
        if field.required:
            left = {key: value for key, value in body.items() if key != name}
            missing = make_item((left, "missing", "Field required", None), name)
            yield pytest.param(endpoint_id, left, [missing], id=f"{endpoint_id}-{name}-missing")


@pytest.mark.parametrize(("endpoint_id", "body", "detail"), list(wrong_bodies()))
def test_wrong_value(api: Api, endpoint_id: str, body: Any, detail: list[Any]) -> None:
    """At once on the synchronous route; on the queue accepted, COMPLETED, and then the same."""
    answer = api.run(endpoint_id, body)
    assert (answer.status_code, answer.json()) == (422, {"detail": detail})
    kept = api.submit(endpoint_id, body)
    status = api.wait(kept)
    assert status.status_code == 200
    assert "error" not in status.json()
    result = api.result(kept)
    assert (result.status_code, result.json()) == (422, {"detail": detail})
    assert result.headers["x-fal-billable-units"] == "0"


def right_values(field: Field) -> list[Any]:
    """Return the values at the field's limits, and every option."""
    if field.kind == "size":
        edges = [{"width": 512, "height": 2048}, {"width": 2048, "height": 512}]
        return [*PRESETS, {}, {"height": 512}, *edges]
    limits = [limit for limit in (field.low, field.high) if limit is not None]
    extra = [None] if field is SEED else []
    return [*field.options, *limits, *extra, *([True, False] if field.kind == "boolean" else [])]


@pytest.mark.parametrize(("endpoint_id", "name"), EVERY_FIELD)
def test_value_at_the_limit(api: Api, endpoint_id: str, name: str) -> None:
    """It is accepted: beside a forgotten prompt, nothing else is found wrong."""
    images = {"image_urls": [PICTURE]} if "image_urls" in PAGES[endpoint_id].inputs else {}
    for value in right_values(PAGES[endpoint_id].inputs[name]):
        answer = api.run(endpoint_id, {**images, name: value, "unknown_key": value})
        found = [(item["type"], item["loc"]) for item in answer.json()["detail"]]
        assert found == [("missing", ["body", "prompt"])]


def read_document(api: Api, endpoint_id: str) -> dict[str, Any]:
    """Fetch an endpoint's OpenAPI document."""
    params = {"endpoint_id": endpoint_id}
    answer = api.http.get("/api/openapi/queue/openapi.json", params=params)
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def follow(document: dict[str, Any], holder: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a request body or a response refers to."""
    name = holder["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema: dict[str, Any] = document["components"]["schemas"][name]
    return schema


def expected_property(field: Field) -> dict[str, Any]:
    """Return what a document must say of a field."""
    if field.kind == "size":
        preset = {"type": "string", "enum": list(PRESETS)}
        choice = [{"$ref": "#/components/schemas/ImageSize"}, preset]
        return {"anyOf": choice, "default": field.default}
    if field.kind == "list":
        return {"type": "array", "items": {"type": "string"}, "minItems": 1}
    said: dict[str, Any] = {"type": "number" if field.kind == "float" else field.kind}
    limits = {"default": field.default, "minimum": field.low, "maximum": field.high}
    said |= {key: value for key, value in limits.items() if value is not None}
    return {**said, "enum": list(field.options)} if field.options else said


@pytest.mark.parametrize("endpoint_id", PAGES)
def test_document(api: Api, endpoint_id: str) -> None:
    """Types, defaults, ranges, options, required fields and their order are the page's."""
    page = PAGES[endpoint_id]
    document = read_document(api, endpoint_id)
    operations = document["paths"]
    schema = follow(document, operations[f"/{endpoint_id}"]["post"]["requestBody"])
    assert schema["x-fal-order-properties"] == list(page.inputs) == list(schema["properties"])
    assert schema["required"] == [key for key, field in page.inputs.items() if field.required]
    for name, field in page.inputs.items():
        found = schema["properties"][name]
        prose = ("title", "description", "example")
        rules = {key: value for key, value in found.items() if key not in prose}
        assert rules == expected_property(field), name
    side = {"type": "integer", "default": 512, "minimum": 512, "maximum": 2048}
    for found in document["components"]["schemas"]["ImageSize"]["properties"].values():
        assert side.items() <= found.items()
    kept = operations[f"/{endpoint_id}/requests/{{request_id}}"]["get"]["responses"]["200"]
    output = follow(document, kept)
    assert output["x-fal-order-properties"] == list(page.outputs) == output["required"]


@pytest.mark.parametrize("endpoint_id", PAGES)
def test_full_example(api: Api, endpoint_id: str) -> None:
    """The page's whole input gives exactly the page's outputs, and a file of the right kind."""
    page = PAGES[endpoint_id]
    kept = api.submit(endpoint_id, page.example)
    api.wait(kept)
    result = api.result(kept)
    assert result.status_code == 200, result.text
    answer = result.json()
    assert list(answer) == list(page.outputs)
    assert 0 <= answer["seed"] < 2**32
    if page.outputs == ALL_OUTPUTS:
        assert answer["prompt"] == page.example["prompt"]
        assert answer["has_nsfw_concepts"] == [False]
        assert answer["timings"]["inference"] > 0
    (image,) = answer["images"]
    check_image(api, image, page.size, page.example["output_format"])
