"""fal's FLUX.2 endpoints as data.

Routes, OpenAPI documents and tests are made from these entries: a new endpoint is a new entry.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from pipelines.types import Acceleration, GenerationSettings, Model, floor_to_multiple
from server import schemas
from server.errors import InputError, RequestError, field_errors
from server.schemas import PRESET_SIZES, RANDOM_SEED_LIMIT, OutputFormat

TURBO_SIGMAS = (1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031)
"""Noise levels of fal's 8-step Turbo LoRA, before the resolution shift.

Source: the model card huggingface.co/fal/FLUX.2-dev-Turbo.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A validated input, in the words of the pipeline and of the answer."""

    prompt: str
    seed: int
    num_images: int
    image_urls: tuple[str, ...]
    settings: GenerationSettings
    output_format: OutputFormat
    sync_mode: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One public model path.

    `model` has the weights that serve it. `fixed` gives the values of what the input has no field
    for, `reference_limit` how many of its `image_urls` are used.
    """

    id: str
    title: str
    description: str
    category: Literal["text-to-image", "image-to-image"]
    input: type[BaseModel]
    output: type[BaseModel]
    model: Model = Model.DEV
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    reference_limit: int = 0

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
        values: dict[str, Any] = {
            "num_images": 1,
            "acceleration": "regular",
            **self.fixed,
            **{name: getattr(parsed, name) for name in type(parsed).model_fields},
        }
        width, height = _pixels(values["image_size"])
        tolerance = values.get("safety_tolerance")
        seed = values["seed"]
        return Order(
            prompt=values["prompt"],
            seed=secrets.randbelow(RANDOM_SEED_LIMIT) if seed is None else seed,
            num_images=values["num_images"],
            image_urls=tuple(values.get("image_urls", ())[: self.reference_limit]),
            output_format=OutputFormat(values["output_format"]),
            sync_mode=values["sync_mode"],
            settings=GenerationSettings(
                width=width,
                height=height,
                num_inference_steps=values["num_inference_steps"],
                guidance_scale=values["guidance_scale"],
                acceleration=Acceleration(values["acceleration"]),
                sigmas=values.get("sigmas"),
                expand_prompt=values["enable_prompt_expansion"],
                check_safety=values["enable_safety_checker"],
                safety_tolerance=int(tolerance) if tolerance else None,
                flash=values.get("flash", False),
            ),
        )


def _pixels(size: schemas.ImageSize | str) -> tuple[int, int]:
    """Return width and height as the model can draw them: multiples of 16, rounded down."""
    width, height = PRESET_SIZES[size] if isinstance(size, str) else (size.width, size.height)
    return floor_to_multiple(width), floor_to_multiple(height)


_FLASH: Mapping[str, Any] = MappingProxyType(
    {"num_inference_steps": len(TURBO_SIGMAS), "sigmas": TURBO_SIGMAS, "flash": True}
)

CATALOGUE: Mapping[str, Endpoint] = MappingProxyType(
    {
        entry.id: entry
        for entry in (
            Endpoint(
                id="fal-ai/flux-2",
                title="Flux2TextToImage",
                description="Text-to-image generation with FLUX.2 [dev].",
                category="text-to-image",
                input=schemas.TextToImageInput,
                output=schemas.FullOutput,
            ),
            Endpoint(
                id="fal-ai/flux-2-dev",
                title="Flux2Dev",
                description="Text-to-image generation with FLUX.2 [dev], under its own name.",
                category="text-to-image",
                input=schemas.TextToImageInput,
                output=schemas.FullOutput,
            ),
            Endpoint(
                id="fal-ai/flux-2/flash",
                title="Flux2Flash",
                description="Text-to-image generation with FLUX.2 [dev] in eight steps.",
                category="text-to-image",
                input=schemas.FlashInput,
                output=schemas.FullOutput,
                fixed=_FLASH,
            ),
            Endpoint(
                id="fal-ai/flux-2/flash/edit",
                title="Flux2FlashEdit",
                description="Image editing with FLUX.2 [dev] in eight steps.",
                category="image-to-image",
                input=schemas.FlashEditInput,
                output=schemas.FullOutput,
                fixed=_FLASH,
                reference_limit=4,
            ),
            Endpoint(
                id="fal-ai/flux-2-flex",
                title="Flux2Flex",
                description="Text-to-image generation with adjustable steps and guidance.",
                category="text-to-image",
                input=schemas.FlexInput,
                output=schemas.SlimOutput,
            ),
        )
    }
)

APP_IDS = frozenset("/".join(endpoint_id.split("/")[:2]) for endpoint_id in CATALOGUE)
"""fal's applications: the first two segments, under which requests are kept."""


def find_endpoint(endpoint_id: str) -> Endpoint:
    """Return the endpoint of this id.

    Raises `RequestError` 404 in fal's two wordings: for an application that is not served, and
    for a path that the application does not have.
    """
    endpoint = CATALOGUE.get(endpoint_id)
    if endpoint:
        return endpoint
    segments = endpoint_id.split("/")
    app_id, path = "/".join(segments[:2]), "/".join(segments[2:])
    if app_id in APP_IDS and path:
        detail = f"Path /{path} not found"
    else:
        detail = f'Application "{app_id}" not found'
    raise RequestError(404, detail, headers={"x-fal-billable-units": "0"})


def missing_model(model: Model, served: Collection[Model]) -> RequestError:
    """Make the answer for an endpoint whose model this box does not have."""
    return RequestError(
        404,
        f'This server does not have the model "{model}", only {", ".join(served)}. Its operator '
        "can add it with FLUX2_MODELS.",
        headers={"x-fal-billable-units": "0"},
    )
