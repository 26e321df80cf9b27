"""The plain values that go into a pipeline and come out of it. No torch here.

The gateway builds these and sends them to the runner, so everything but the image itself is
made of numbers, strings and paths.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from PIL import Image

from pipelines.instructions import MAX_NEW_TOKENS

SIZE_MULTIPLE_PIXELS = 16
"""One FLUX.2 token covers 16x16 pixels: the VAE reduces 8 times, the 2x2 patches twice more."""

REFERENCE_AREA_PIXELS = 1024 * 1024
"""A larger reference image is scaled down to this area, as `Flux2Pipeline` does."""

MAX_SEED = 2**63 - 1
"""The largest seed `torch.Generator.manual_seed` takes as a signed 64-bit integer."""


TURBO_LORA_PATH = Path("flash") / "flux.2-turbo-lora.safetensors"
"""Where the LoRA of the flash endpoints lies, relative to the model folder."""


CACHE_BYTES = 1024**3
"""Most that remembered prompts and references take: some sixty prompts of the real model."""

LORA_CACHE_BYTES = 2 * 1024**3
"""Most that LoRAs of callers take on the device between requests: some ten of rank 16 for all
layers of FLUX.2 [dev]."""


class Model(StrEnum):
    """The models of the FLUX.2 family that an endpoint can be served by.

    Each has weights of its own. The `base` ones are undistilled: they take more steps, and true
    guidance with a second pass.
    """

    DEV = "dev"
    KLEIN_4B = "klein-4b"
    KLEIN_9B = "klein-9b"
    KLEIN_4B_BASE = "klein-4b-base"
    KLEIN_9B_BASE = "klein-9b-base"


class Acceleration(StrEnum):
    """fal's levels: how much exactness a request gives up for speed."""

    NONE = "none"
    REGULAR = "regular"
    HIGH = "high"


class Precision(StrEnum):
    """What the linear layers of the transformer's blocks are computed in.

    `fp8` is E4M3 and `int8` is 8-bit integers, both with one scale for each row of the weights
    and for each token; everything outside these layers stays in the checkpoint's precision.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FP8 = "fp8"
    INT8 = "int8"


class FlashSchedule(StrEnum):
    """The noise levels of the eight-step endpoints.

    `card` shifts the Turbo model card's levels by the resolution, as its own code does. `shift-3`
    is the schedule of its training, at every resolution. They agree at 1024x1024.
    """

    CARD = "card"
    SHIFT_3 = "shift-3"


class Stage(StrEnum):
    """The parts of one generation, in order."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyOptions:
    """Which safety checker looks at images, and how strictly: the operator's choices.

    `labels` names the labels of a classifier that are unsafe (none: known words tell), `threshold`
    is the least score that is flagged. With `check_references` reference images must pass too.
    Blocked images are kept in `quarantine`, if there is one.
    """

    folder: Path
    labels: tuple[str, ...] = ()
    threshold: float = 0.5
    check_references: bool = False
    quarantine: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What has to be known to load a model: the operator's choices, none of a caller's.

    `model` is a diffusers folder. `device` is `auto`, `cpu`, `cuda` or `cuda:N`; `dtype` is `auto`,
    `float32` or `bfloat16`. `compile` is `auto` (on a GPU), `on` or `off`; `attention` is `auto` or
    a kernel of `pipelines.attention`. `flash_lora` is the file of the eight-step LoRA, by default
    the one in the model folder; with `flash_fallback` its endpoints work without it, in as many
    steps. `compile_cache` is a folder for compiled kernels, `builds` one for notes of what images
    come from, `cache_bytes` the most that remembered prompts and references take,
    `lora_cache_bytes` the most that callers' LoRAs take between requests. `profile` is a memory
    profile of `pipelines.plan`. `text_encoder` is `whole`, with what it needs to write and
    judge, `prompts`, or `auto`: whole where that costs nothing else. Expanded prompts have
    `expansion_tokens` at most; `prompt_criteria` are yes-or-no questions that prompts are refused
    by. Without `safety` nothing looks at images.
    """

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    compile: str = "auto"
    attention: str = "auto"
    flash_lora: Path | None = None
    flash_fallback: bool = False
    flash_schedule: FlashSchedule = FlashSchedule.CARD
    compile_cache: Path | None = None
    builds: Path | None = None
    cache_bytes: int = CACHE_BYTES
    lora_cache_bytes: int = LORA_CACHE_BYTES
    profile: str = "auto"
    text_encoder: str = "auto"
    expansion_tokens: int = MAX_NEW_TOKENS
    prompt_criteria: tuple[str, ...] = ()
    safety: SafetyOptions | None = None


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA file that a request is made with, and how strongly: 1 as it was trained."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How to make an image: what the endpoint and its input map onto.

    `sigmas` replaces the default noise schedule, before the resolution shift; its length must
    be `num_inference_steps`. `negative_prompt` is what true guidance leads away from, for models
    that have it. `loras` are trusted files, put on in this order. `acceleration` none is exact;
    what the other levels and the switches below it do is decided by the pipeline that is loaded.
    """

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    acceleration: Acceleration = Acceleration.NONE
    sigmas: tuple[float, ...] | None = None
    expand_prompt: bool = False
    check_safety: bool = True
    safety_tolerance: int | None = None
    flash: bool = False
    negative_prompt: str = ""
    loras: tuple[LoraUse, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request: `num_images` images of one prompt, image i drawn from `seed + i`.

    `reference_images` are paths of trusted RGB files, already decoded and checked. With `previews`
    somebody watches: some steps come with a picture of what is drawn so far.
    """

    request_id: str
    prompt: str
    seed: int
    num_images: int
    settings: GenerationSettings
    reference_images: tuple[Path, ...] = ()
    previews: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: `step` of `steps` of this stage is done, for image `image_index`.

    Stages other than denoise have one step; encode serves all images and is told for index 0.
    `preview` is a small picture of the image so far, unchecked, where the request wants previews.
    """

    stage: Stage
    image_index: int
    step: int
    steps: int
    preview: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent on one image; `encode_seconds` is zero for all but the first."""

    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float

    @property
    def total_seconds(self) -> float:
        """The whole way from prompt to pixels."""
        return self.encode_seconds + self.denoise_seconds + self.decode_seconds


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One finished image, before the safety check and before it is encoded to a file.

    `prompt` is what it was made from: the request's, or what that was expanded to.
    """

    index: int
    seed: int
    image: Image.Image
    timings: Timings
    prompt: str


OnLoadProgress = Callable[[str, float], None]
"""Told while a model loads: the stage, a short word as `text_encoder`, `transformer` or `warm_up`,
and which fraction of this stage is done, between 0 and 1."""

OnStep = Callable[[Step], None]
IsCancelled = Callable[[], bool]


class Pipeline(Protocol):
    """A loaded model."""

    @property
    def second_look(self) -> Callable[[Image.Image], bool] | None:
        """What judges images again that the safety checker is unsure of, from another thread."""
        ...

    def release_memory(self) -> None:
        """Give back memory that is only cached, before a request is tried once more."""
        ...

    def describe(self, settings: GenerationSettings) -> Mapping[str, str]:
        """Tell how an image with these settings is really made, for logs and answers.

        Names and values are short ASCII words without commas; `acceleration`, `precision` and
        `lora` are always among the names. Raises `FlashUnavailableError` or `LoraRefusedError` for
        settings that this pipeline cannot fulfil.
        """
        ...

    def generate(
        self, request: GenerationRequest, on_step: OnStep, is_cancelled: IsCancelled
    ) -> Iterator[GeneratedImage]:
        """Yield the images of `request` one by one, in order.

        `on_step` is called as work gets done, `is_cancelled` is asked before every step.
        Raises `CancelledError` at the next step once it says yes, `OutOfMemoryError` when this
        request does not fit, `FlashUnavailableError` when it needs a LoRA that is not there,
        `LoraRefusedError` for one of its own LoRAs that does not fit the model,
        `PromptRefusedError` for a prompt that meets the operator's criteria,
        `DeviceLostError` when the process is past saving.
        """
        ...


def ignore_load_progress(_stage: str, _fraction: float) -> None:
    """Be told how loading goes, and do nothing."""


def floor_to_multiple(pixels: int) -> int:
    """The largest size the model can draw that is not above `pixels`: a multiple of 16."""
    return pixels // SIZE_MULTIPLE_PIXELS * SIZE_MULTIPLE_PIXELS


def size_of_reference(width: int, height: int) -> tuple[int, int]:
    """Return the size in pixels that a reference image of this size is read at.

    It is also the size of an image that is asked for without one, as `Flux2Pipeline` does it.
    """
    area = width * height
    if area > REFERENCE_AREA_PIXELS:
        scale = math.sqrt(REFERENCE_AREA_PIXELS / area)
        width, height = int(width * scale), int(height * scale)
    return floor_to_multiple(width), floor_to_multiple(height)
