"""FLUX.2 [dev]: from 28 steps, and in eight with fal's Turbo LoRA."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from server.family.endpoint import Endpoint
from server.family.fields import (
    AccelerationLevel,
    AnyFormat,
    AnySize,
    CheckSafety,
    EditPrompt,
    ExpandPrompt,
    FirstFourUrls,
    GenerationPrompt,
    GuidanceScale,
    Input,
    NumImages,
    NumInferenceSteps,
    Seed,
    SizeOrInputs,
    SyncMode,
)
from server.schemas import FullOutput

TURBO_SIGMAS = (1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031)
"""Noise levels of fal's 8-step Turbo LoRA, before the resolution shift.

Source: the model card huggingface.co/fal/FLUX.2-dev-Turbo.
"""

EIGHT_STEPS: Mapping[str, Any] = MappingProxyType(
    {"num_inference_steps": len(TURBO_SIGMAS), "sigmas": TURBO_SIGMAS, "flash": True}
)


class TextToImageInput(Input):
    """Input of `flux-2` and `flux-2-dev`."""

    prompt: GenerationPrompt
    guidance_scale: GuidanceScale = 2.5
    seed: Seed = None
    num_inference_steps: NumInferenceSteps = 28
    image_size: AnySize = "landscape_4_3"
    num_images: NumImages = 1
    acceleration: AccelerationLevel = "regular"
    enable_prompt_expansion: ExpandPrompt = False
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"


class EditInput(Input):
    """Input of `flux-2/edit`: the same, with the images to edit, whose size the result takes."""

    prompt: EditPrompt
    guidance_scale: GuidanceScale = 2.5
    seed: Seed = None
    num_inference_steps: NumInferenceSteps = 28
    image_size: SizeOrInputs = None
    num_images: NumImages = 1
    acceleration: AccelerationLevel = "regular"
    enable_prompt_expansion: ExpandPrompt = False
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"
    image_urls: FirstFourUrls


class FastInput(Input):
    """Input of `flux-2/flash` and `flux-2/turbo`: the number of steps belongs to the model."""

    prompt: GenerationPrompt
    guidance_scale: GuidanceScale = 2.5
    seed: Seed = None
    image_size: AnySize = "landscape_4_3"
    num_images: NumImages = 1
    enable_prompt_expansion: ExpandPrompt = False
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"


class FastEditInput(FastInput):
    """Input of `flux-2/flash/edit` and `flux-2/turbo/edit`: the same, with the images to edit."""

    prompt: EditPrompt
    image_size: AnySize = "square_hd"
    image_urls: FirstFourUrls


ENDPOINTS = (
    Endpoint(
        id="fal-ai/flux-2",
        title="Flux2TextToImage",
        description="Text-to-image generation with FLUX.2 [dev].",
        category="text-to-image",
        input=TextToImageInput,
        output=FullOutput,
    ),
    Endpoint(
        id="fal-ai/flux-2-dev",
        title="Flux2Dev",
        description="Text-to-image generation with FLUX.2 [dev], under its own name.",
        category="text-to-image",
        input=TextToImageInput,
        output=FullOutput,
    ),
    Endpoint(
        id="fal-ai/flux-2/edit",
        title="Flux2Edit",
        description="Image editing with FLUX.2 [dev].",
        category="image-to-image",
        input=EditInput,
        output=FullOutput,
        reference_limit=4,
    ),
    Endpoint(
        id="fal-ai/flux-2/flash",
        title="Flux2Flash",
        description="Text-to-image generation with FLUX.2 [dev] in eight steps.",
        category="text-to-image",
        input=FastInput,
        output=FullOutput,
        fixed=EIGHT_STEPS,
    ),
    Endpoint(
        id="fal-ai/flux-2/flash/edit",
        title="Flux2FlashEdit",
        description="Image editing with FLUX.2 [dev] in eight steps.",
        category="image-to-image",
        input=FastEditInput,
        output=FullOutput,
        fixed=EIGHT_STEPS,
        reference_limit=4,
    ),
    Endpoint(
        id="fal-ai/flux-2/turbo",
        title="Flux2Turbo",
        description="Text-to-image generation with FLUX.2 [dev] and its Turbo LoRA.",
        category="text-to-image",
        input=FastInput,
        output=FullOutput,
        fixed=EIGHT_STEPS,
    ),
    Endpoint(
        id="fal-ai/flux-2/turbo/edit",
        title="Flux2TurboEdit",
        description="Image editing with FLUX.2 [dev] and its Turbo LoRA.",
        category="image-to-image",
        input=FastEditInput,
        output=FullOutput,
        fixed=EIGHT_STEPS,
        reference_limit=4,
    ),
)
