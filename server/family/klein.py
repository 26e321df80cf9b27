"""FLUX.2 [klein]: two sizes, each distilled to four steps, and undistilled as `base`."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from pipelines.types import Model
from server.family.endpoint import Endpoint
from server.family.fields import (
    STEPS,
    URLS,
    AccelerationLevel,
    AnyFormat,
    AnySize,
    CheckSafety,
    EditPrompt,
    GenerationPrompt,
    GuidanceScale,
    Input,
    NegativePrompt,
    NumImages,
    NumInferenceSteps,
    Seed,
    SizeOrInputs,
    SyncMode,
    Text,
)
from server.schemas import FullOutput

REFERENCE_LIMIT = 4

FewSteps = Annotated[
    int, Field(title=STEPS, ge=4, le=8, description="The number of inference steps to perform.")
]
UpToFourUrls = Annotated[
    list[Text],
    Field(
        title=URLS,
        min_length=1,
        max_length=REFERENCE_LIMIT,
        description="The URLs of the images for editing. A maximum of 4 images are allowed.",
    ),
]


class KleinInput(Input):
    """Input of `klein/4b` and `klein/9b`: guidance is distilled into the model."""

    prompt: GenerationPrompt
    seed: Seed = None
    num_inference_steps: FewSteps = 4
    image_size: AnySize = "landscape_4_3"
    num_images: NumImages = 1
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"


class KleinEditInput(Input):
    """Input of `klein/4b/edit` and `klein/9b/edit`: with images, whose size the result takes."""

    prompt: EditPrompt
    seed: Seed = None
    num_inference_steps: FewSteps = 4
    image_size: SizeOrInputs = None
    num_images: NumImages = 1
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"
    image_urls: UpToFourUrls


class KleinBaseInput(Input):
    """Input of `klein/4b/base` and `klein/9b/base`, which have true guidance."""

    prompt: GenerationPrompt
    negative_prompt: NegativePrompt = ""
    guidance_scale: GuidanceScale = 5
    seed: Seed = None
    num_inference_steps: NumInferenceSteps = 28
    image_size: AnySize = "landscape_4_3"
    num_images: NumImages = 1
    acceleration: AccelerationLevel = "regular"
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"


class KleinBaseEditInput(Input):
    """Input of `klein/.../base/edit`: the same, with images, whose size the result takes."""

    prompt: EditPrompt
    negative_prompt: NegativePrompt = ""
    guidance_scale: GuidanceScale = 5
    seed: Seed = None
    num_inference_steps: NumInferenceSteps = 28
    image_size: SizeOrInputs = None
    num_images: NumImages = 1
    acceleration: AccelerationLevel = "regular"
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"
    image_urls: UpToFourUrls


DISTILLED: Mapping[str, Any] = MappingProxyType({"guidance_scale": 1.0})
"""One pass a step: what guidance did is in the weights."""


def _of_size(size: str, distilled: Model, base: Model) -> Iterator[Endpoint]:
    """Yield the endpoints of one size, `4b` or `9b`."""
    path, title, name = (
        f"fal-ai/flux-2/klein/{size}",
        f"Flux2Klein{size}",
        f"[klein] {size.upper()}",
    )
    yield Endpoint(
        id=path,
        title=title,
        description=f"Text-to-image generation with FLUX.2 {name}.",
        category="text-to-image",
        input=KleinInput,
        output=FullOutput,
        model=distilled,
        fixed=DISTILLED,
    )
    yield Endpoint(
        id=f"{path}/edit",
        title=f"{title}Edit",
        description=f"Image editing with FLUX.2 {name}.",
        category="image-to-image",
        input=KleinEditInput,
        output=FullOutput,
        model=distilled,
        fixed=DISTILLED,
        reference_limit=REFERENCE_LIMIT,
    )
    yield Endpoint(
        id=f"{path}/base",
        title=f"{title}Base",
        description=f"Text-to-image generation with FLUX.2 {name} Base.",
        category="text-to-image",
        input=KleinBaseInput,
        output=FullOutput,
        model=base,
    )
    yield Endpoint(
        id=f"{path}/base/edit",
        title=f"{title}BaseEdit",
        description=f"Image editing with FLUX.2 {name} Base.",
        category="image-to-image",
        input=KleinBaseEditInput,
        output=FullOutput,
        model=base,
        reference_limit=REFERENCE_LIMIT,
    )


ENDPOINTS = (
    *_of_size("4b", Model.KLEIN_4B, Model.KLEIN_4B_BASE),
    *_of_size("9b", Model.KLEIN_9B, Model.KLEIN_9B_BASE),
    Endpoint(
        id="fal-ai/flux-2-klein/4b",
        title="Flux2KleinOf4b",
        description="Text-to-image generation with FLUX.2 [klein] 4B, under its own name.",
        category="text-to-image",
        input=KleinInput,
        output=FullOutput,
        model=Model.KLEIN_4B,
        fixed=DISTILLED,
    ),
)
