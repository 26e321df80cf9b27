"""What an endpoint is, and the order that a request body becomes."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from pipelines.types import (
    Acceleration,
    GenerationSettings,
    Model,
    floor_to_multiple,
    size_of_reference,
)
from server.errors import InputError, field_errors
from server.family.fields import PRESET_SIZES, ImageSize
from server.schemas import OutputFormat

RANDOM_SEED_LIMIT = 2**32
"""Drawn seeds stay below this, so that JavaScript's numbers hold them exactly."""

NO_SIZE = (0, 0)

LORAS_FIELD = "loras"

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "num_images": 1,
        "image_urls": (),
        "acceleration": "regular",
        "enable_prompt_expansion": False,
        "safety_tolerance": None,
        "negative_prompt": "",
        "sigmas": None,
        "flash": False,
        LORAS_FIELD: (),
    }
)
"""What an endpoint means whose input has no such field, and that says nothing else itself."""


@dataclass(frozen=True, slots=True)
class AskedLora:
    """A LoRA that an order is to be made with: where it is, in its caller's words."""

    path: str
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A validated input, in the words of the pipeline and of the answer.

    Its size may be that of the first reference image: then `settings` has none until `fit_to`.
    Nor has it `loras` until their files are there.
    """

    prompt: str
    seed: int
    num_images: int
    image_urls: tuple[str, ...]
    settings: GenerationSettings
    output_format: OutputFormat
    sync_mode: bool
    loras: tuple[AskedLora, ...] = ()

    @property
    def needs_size(self) -> bool:
        """Whether the size is yet to be taken from the first reference image."""
        return (self.settings.width, self.settings.height) == NO_SIZE

    def fit_to(self, width: int, height: int) -> "Order":
        """Return the order with the size that a first reference image of this size gives it."""
        width, height = size_of_reference(width, height)
        return replace(self, settings=replace(self.settings, width=width, height=height))


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One public model path.

    `model` has the weights that serve it; with `is_alias` fal's own are not public, so that only
    an operator may say that these stand in for them. `fixed` gives the values of what the input
    has no field for, `reference_limit` how many of its `image_urls` are used. `lora` names the one
    of the operator's that is always put on, by the input's `lora_scale`; `write_prompt` makes the
    prompt of an input that has none.
    """

    id: str
    title: str
    description: str
    category: Literal["text-to-image", "image-to-image"]
    input: type[BaseModel]
    output: type[BaseModel]
    model: Model = Model.DEV
    is_alias: bool = False
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    reference_limit: int = 0
    lora: str | None = None
    write_prompt: Callable[[Mapping[str, Any]], str] | None = None

    @property
    def takes_loras(self) -> bool:
        """Whether callers may bring LoRAs."""
        return LORAS_FIELD in self.input.model_fields

    def parse(self, body: Any) -> Order:
        """Validate a request body. Raises `InputError` with one entry for every mistake."""
        if body is None:
            missing = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
            raise InputError([missing])
        try:
            # As FastAPI validates bodies, so that what is no object is told in its words.
            parsed = self.input.model_validate(body, from_attributes=True)
        except ValidationError as error:
            raise field_errors(error) from error
        given = {name: getattr(parsed, name) for name in type(parsed).model_fields}
        values = {**DEFAULTS, **self.fixed, **given}
        seed = values["seed"]
        return Order(
            prompt=self.write_prompt(values) if self.write_prompt else values["prompt"],
            seed=secrets.randbelow(RANDOM_SEED_LIMIT) if seed is None else seed,
            num_images=values["num_images"],
            image_urls=tuple(values["image_urls"][: self.reference_limit]),
            output_format=OutputFormat(values["output_format"]),
            sync_mode=values["sync_mode"],
            settings=_settings(values),
            loras=self._loras(values),
        )

    def _loras(self, values: Mapping[str, Any]) -> tuple[AskedLora, ...]:
        if self.lora:
            return (AskedLora(self.lora, values["lora_scale"]),)
        return tuple(AskedLora(lora.path, lora.scale) for lora in values[LORAS_FIELD])


def _settings(values: Mapping[str, Any]) -> GenerationSettings:
    width, height = _pixels(values["image_size"])
    tolerance = values["safety_tolerance"]
    return GenerationSettings(
        width=width,
        height=height,
        num_inference_steps=values["num_inference_steps"],
        guidance_scale=values["guidance_scale"],
        acceleration=Acceleration(values["acceleration"]),
        sigmas=values["sigmas"],
        expand_prompt=values["enable_prompt_expansion"],
        check_safety=values["enable_safety_checker"],
        safety_tolerance=int(tolerance) if tolerance else None,
        flash=values["flash"],
        negative_prompt=values["negative_prompt"],
    )


def _pixels(size: ImageSize | str | None) -> tuple[int, int]:
    """Return width and height as the model can draw them: multiples of 16, rounded down."""
    if size is None or size == "auto":
        return NO_SIZE
    width, height = PRESET_SIZES[size] if isinstance(size, str) else (size.width, size.height)
    return floor_to_multiple(width), floor_to_multiple(height)
