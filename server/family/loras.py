"""Endpoints that put LoRAs on: those that their callers bring, and those of fal's gallery."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from pipelines.types import Model
from server.family.dev import EditInput, TextToImageInput
from server.family.endpoint import Endpoint
from server.family.fields import (
    STEPS,
    URLS,
    AnyFormat,
    AnySize,
    CheckSafety,
    EditPrompt,
    FirstFourUrls,
    GenerationPrompt,
    GuidanceScale,
    Input,
    NumImages,
    Seed,
    SizeOrInputs,
    SyncMode,
    Text,
)
from server.family.klein import (
    DISTILLED,
    REFERENCE_LIMIT,
    KleinBaseEditInput,
    KleinBaseInput,
    KleinEditInput,
    KleinInput,
)
from server.schemas import FullOutput, Images, UsedSeed

MOST_LORAS = 3
GALLERY = "flux-2-lora-gallery"
"""The folder of the operator's LoRAs that has those of the gallery, a file of its name for each."""


class LoRAInput(BaseModel):
    """A LoRA to put on."""

    path: Text = Field(
        description="URL of the LoRA's safetensors file, one uploaded to this server among them, "
        "or the name of one that this server has, such as a Hugging Face repository's."
    )
    scale: float = Field(
        1,
        ge=0,
        le=4,
        allow_inf_nan=False,
        description="How strongly it is put on; 1 is how it was trained.",
    )


Loras = Annotated[
    list[LoRAInput],
    Field(
        title="LoRAs",
        max_length=MOST_LORAS,
        description=f"The LoRAs to put on, up to {MOST_LORAS}, in this order.",
    ),
]
FirstThreeUrls = Annotated[
    list[Text],
    Field(
        title=URLS,
        min_length=1,
        description="The URLs of the images for editing. A maximum of 3 images are allowed, "
        "if more are provided, only the first 3 will be used.",
    ),
]


class LoraInput(TextToImageInput):
    """Input of `flux-2/lora`."""

    loras: Loras = Field([])


class LoraEditInput(EditInput):
    """Input of `flux-2/lora/edit`."""

    image_urls: FirstThreeUrls
    loras: Loras = Field([])


class KleinLoraInput(KleinInput):
    """Input of `klein/.../lora`."""

    loras: Loras = Field([])


class KleinEditLoraInput(KleinEditInput):
    """Input of `klein/.../edit/lora`."""

    loras: Loras = Field([])


class KleinBaseLoraInput(KleinBaseInput):
    """Input of `klein/.../base/lora`."""

    loras: Loras = Field([])


class KleinBaseEditLoraInput(KleinBaseEditInput):
    """Input of `klein/.../base/edit/lora`."""

    loras: Loras = Field([])


GallerySteps = Annotated[
    int, Field(title=STEPS, ge=4, le=50, description="The number of inference steps to perform.")
]
GalleryLevel = Annotated[
    Literal["none", "regular"],
    Field(description="The acceleration level to use for the image generation."),
]
LoraScale = Annotated[
    float,
    Field(
        title="LoRA Scale",
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="How strongly the endpoint's LoRA is put on.",
    ),
]


class GalleryInput(Input):
    """Input of a style of the gallery."""

    prompt: GenerationPrompt
    guidance_scale: GuidanceScale = 2.5
    seed: Seed = None
    num_inference_steps: GallerySteps = 40
    image_size: AnySize = "landscape_4_3"
    num_images: NumImages = 1
    acceleration: GalleryLevel = "regular"
    lora_scale: LoraScale = 1
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"


class _GalleryImages(Input):
    guidance_scale: GuidanceScale = 2.5
    seed: Seed = None
    num_inference_steps: GallerySteps = 40
    image_size: SizeOrInputs = None
    num_images: NumImages = 1
    acceleration: GalleryLevel = "regular"
    lora_scale: LoraScale = 1
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AnyFormat = "png"
    image_urls: FirstFourUrls


class GalleryEditInput(_GalleryImages):
    """Input of a transformation of the gallery."""

    prompt: EditPrompt


class AnglesInput(_GalleryImages):
    """Input of `multiple-angles`, whose prompt is made of where the camera is."""

    horizontal_angle: float = Field(
        0,
        ge=0,
        le=360,
        allow_inf_nan=False,
        description="Degrees around the object: 0 is its front, 90 its right side, 180 its back, "
        "270 its left side.",
    )
    vertical_angle: float = Field(
        0,
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="Degrees above eye level, from which the camera looks down.",
    )
    zoom: float = Field(
        5,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="How near the camera is: 0 a wide shot, 5 a medium one, 10 a close-up.",
    )


class GalleryOutput(BaseModel):
    """Output of the gallery."""

    images: Images
    prompt: Annotated[str, Field(description="The prompt used for generating the image.")]
    seed: UsedSeed


VIEWS = (
    *("front view", "front-right quarter view", "right side view", "back-right quarter view"),
    *("back view", "back-left quarter view", "left side view", "front-left quarter view"),
)
ELEVATIONS = ("eye-level shot", "elevated shot", "high-angle shot")
DISTANCES = ("wide shot", "medium shot", "close-up")


def angles_prompt(values: Mapping[str, Any]) -> str:
    """Write what multi-angle LoRAs are trained on: `<sks>`, and the nearest of each word.

    Sources: for the words, the cards of lovis93/Flux.2-Multi-Angles-v2 and of fal's LoRA of this
    kind on Hugging Face; for where each of them is, fal's page of the endpoint.
    """
    view = VIEWS[int(values["horizontal_angle"] / 45 + 0.5) % len(VIEWS)]
    elevation = ELEVATIONS[int(values["vertical_angle"] / 30 + 0.5)]
    distance = DISTANCES[int(values["zoom"] / 5 + 0.5)]
    return f"<sks> {view} {elevation} {distance}"


def _of_klein(size: str, distilled: Model, base: Model) -> Iterator[Endpoint]:
    """Yield the endpoints of one size, `4b` or `9b`."""
    path, title, name = (
        f"fal-ai/flux-2/klein/{size}",
        f"Flux2Klein{size}",
        f"[klein] {size.upper()}",
    )
    for infix, words, model, text, edit in (
        ("", "", distilled, KleinLoraInput, KleinEditLoraInput),
        ("/base", " Base", base, KleinBaseLoraInput, KleinBaseEditLoraInput),
    ):
        fixed = DISTILLED if model is distilled else {}
        yield Endpoint(
            id=f"{path}{infix}/lora",
            title=f"{title}{words.strip()}Lora",
            description=f"Text-to-image generation with FLUX.2 {name}{words} and LoRAs.",
            category="text-to-image",
            input=text,
            output=FullOutput,
            model=model,
            fixed=fixed,
        )
        yield Endpoint(
            id=f"{path}{infix}/edit/lora",
            title=f"{title}{words.strip()}EditLora",
            description=f"Image editing with FLUX.2 {name}{words} and LoRAs.",
            category="image-to-image",
            input=edit,
            output=FullOutput,
            model=model,
            fixed=fixed,
            reference_limit=REFERENCE_LIMIT,
        )


def _of_gallery() -> Iterator[Endpoint]:
    for name, words in _TRANSFORMATIONS.items():
        is_angles = name == "multiple-angles"
        yield Endpoint(
            id=f"fal-ai/{GALLERY}/{name}",
            title=_title_of(name),
            description=words,
            category="image-to-image",
            input=AnglesInput if is_angles else GalleryEditInput,
            output=GalleryOutput,
            lora=f"{GALLERY}/{name}",
            write_prompt=angles_prompt if is_angles else None,
            reference_limit=4,
        )
    for name, words in _STYLES.items():
        yield Endpoint(
            id=f"fal-ai/{GALLERY}/{name}",
            title=_title_of(name),
            description=words,
            category="text-to-image",
            input=GalleryInput,
            output=GalleryOutput,
            lora=f"{GALLERY}/{name}",
        )


def _title_of(name: str) -> str:
    return "Flux2Gallery" + "".join(word.capitalize() for word in name.split("-"))


_TRANSFORMATIONS = {
    "add-background": "Puts a background behind what stands free.",
    "apartment-staging": "Furnishes an empty room.",
    "face-to-full-portrait": "Makes a whole portrait of a face.",
    "multiple-angles": "Shows the same object from another angle.",
    "virtual-tryon": "Dresses a person in other clothes.",
}
_STYLES = {
    "ballpoint-pen-sketch": "Text-to-image generation as sketches in ballpoint pen.",
    "digital-comic-art": "Text-to-image generation as digital comic art.",
    "hdr-style": "Text-to-image generation with the look of HDR photographs.",
    "realism": "Text-to-image generation with the look of photographs.",
    "satellite-view-style": "Text-to-image generation as seen from a satellite.",
    "sepia-vintage": "Text-to-image generation as old photographs in sepia.",
}

ENDPOINTS = (
    Endpoint(
        id="fal-ai/flux-2/lora",
        title="Flux2Lora",
        description="Text-to-image generation with FLUX.2 [dev] and LoRAs.",
        category="text-to-image",
        input=LoraInput,
        output=FullOutput,
    ),
    Endpoint(
        id="fal-ai/flux-2/lora/edit",
        title="Flux2LoraEdit",
        description="Image editing with FLUX.2 [dev] and LoRAs.",
        category="image-to-image",
        input=LoraEditInput,
        output=FullOutput,
        reference_limit=3,
    ),
    *_of_klein("4b", Model.KLEIN_4B, Model.KLEIN_4B_BASE),
    *_of_klein("9b", Model.KLEIN_9B, Model.KLEIN_9B_BASE),
    *_of_gallery(),
)
