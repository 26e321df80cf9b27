"""FLUX.2 [flex], [pro] and [max], whose weights are not public: FLUX.2 [dev] stands in for them.

Their inputs and answers are their own. [flex] says what [dev] needs to know; steps and guidance of
the other two, which their callers do not choose, are chosen here.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from server.family.endpoint import Endpoint
from server.family.fields import (
    STEPS,
    URLS,
    AnySize,
    CheckSafety,
    EditPrompt,
    ExpandPrompt,
    GenerationPrompt,
    Input,
    SafetyTolerance,
    Seed,
    SizeOrAuto,
    SlimFormat,
    SyncMode,
    Text,
)
from server.schemas import SlimOutput

REFERENCE_LIMIT = 8
"""fal gives none; Black Forest Labs' own interface to these models takes eight.

Source: docs.bfl.ai/guides/prompting_editing_overview.
"""

AS_DEV: Mapping[str, Any] = MappingProxyType({"num_inference_steps": 28, "guidance_scale": 2.5})
"""For [pro]: what `fal-ai/flux-2` does by default."""

AS_PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {"num_inference_steps": 50, "guidance_scale": 4.0}
)
"""For [max]: the defaults of [dev]'s publisher, the slowest and finest that it offers."""

FlexGuidance = Annotated[
    float,
    Field(
        ge=1.5,
        le=10,
        allow_inf_nan=False,
        description="The guidance scale to use for the generation.",
    ),
]
FlexSteps = Annotated[
    int, Field(title=STEPS, ge=2, le=50, description="The number of inference steps to perform.")
]
UpToEightUrls = Annotated[
    list[Text],
    Field(
        title=URLS,
        min_length=1,
        max_length=REFERENCE_LIMIT,
        description="The URLs of the images for editing. A maximum of 8 images are allowed.",
    ),
]


class FlexInput(Input):
    """Input of `flux-2-flex`."""

    prompt: GenerationPrompt
    image_size: AnySize = "landscape_4_3"
    enable_prompt_expansion: ExpandPrompt = True
    seed: Seed = None
    safety_tolerance: SafetyTolerance = "2"
    enable_safety_checker: CheckSafety = True
    output_format: SlimFormat = "jpeg"
    sync_mode: SyncMode = False
    guidance_scale: FlexGuidance = 3.5
    num_inference_steps: FlexSteps = 28


class FlexEditInput(Input):
    """Input of `flux-2-flex/edit`: the same, with the images to edit."""

    prompt: EditPrompt
    image_size: SizeOrAuto = "auto"
    enable_prompt_expansion: ExpandPrompt = True
    seed: Seed = None
    safety_tolerance: SafetyTolerance = "2"
    enable_safety_checker: CheckSafety = True
    output_format: SlimFormat = "jpeg"
    sync_mode: SyncMode = False
    image_urls: UpToEightUrls
    guidance_scale: FlexGuidance = 3.5
    num_inference_steps: FlexSteps = 28


class ProInput(Input):
    """Input of `flux-2-pro` and `flux-2-max`."""

    prompt: GenerationPrompt
    image_size: AnySize = "landscape_4_3"
    seed: Seed = None
    safety_tolerance: SafetyTolerance = "2"
    enable_safety_checker: CheckSafety = True
    output_format: SlimFormat = "jpeg"
    sync_mode: SyncMode = False


class ProEditInput(Input):
    """Input of `flux-2-pro/edit` and `flux-2-max/edit`: the same, with the images to edit."""

    prompt: EditPrompt
    image_size: SizeOrAuto = "auto"
    seed: Seed = None
    safety_tolerance: SafetyTolerance = "2"
    enable_safety_checker: CheckSafety = True
    output_format: SlimFormat = "jpeg"
    sync_mode: SyncMode = False
    image_urls: UpToEightUrls


def _aliases(name: str, fixed: Mapping[str, Any]) -> Iterator[Endpoint]:
    """Yield the two endpoints of [pro] or [max]."""
    yield Endpoint(
        id=f"fal-ai/flux-2-{name}",
        title=f"Flux2{name.title()}",
        description=f"Text-to-image generation for callers of FLUX.2 [{name}], by FLUX.2 [dev].",
        category="text-to-image",
        input=ProInput,
        output=SlimOutput,
        is_alias=True,
        fixed=fixed,
    )
    yield Endpoint(
        id=f"fal-ai/flux-2-{name}/edit",
        title=f"Flux2{name.title()}Edit",
        description=f"Image editing for callers of FLUX.2 [{name}], by FLUX.2 [dev].",
        category="image-to-image",
        input=ProEditInput,
        output=SlimOutput,
        is_alias=True,
        fixed=fixed,
        reference_limit=REFERENCE_LIMIT,
    )


ENDPOINTS = (
    Endpoint(
        id="fal-ai/flux-2-flex",
        title="Flux2Flex",
        description="Text-to-image generation with adjustable steps and guidance.",
        category="text-to-image",
        input=FlexInput,
        output=SlimOutput,
    ),
    Endpoint(
        id="fal-ai/flux-2-flex/edit",
        title="Flux2FlexEdit",
        description="Image editing with adjustable steps and guidance.",
        category="image-to-image",
        input=FlexEditInput,
        output=SlimOutput,
        reference_limit=REFERENCE_LIMIT,
    ),
    *_aliases("pro", AS_DEV),
    *_aliases("max", AS_PUBLISHED),
)
