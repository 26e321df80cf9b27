"""FLUX.2 [dev], from prompt to pixels: encode, prepare, denoise, decode.

The model's parts are diffusers' own; the loop around them is ours, so that a request can be
watched, cancelled at a step, and never shares state with another one. With acceleration `none`
it gives bit for bit what `diffusers.Flux2Pipeline` gives; a test holds that.

Shapes: B is always 1 (a batch gains nothing at this size, see docs/ARCHITECTURE.md), C = 128
latent channels, H and W the image's sides / 16, S = H * W image tokens, R reference tokens.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, retrieve_timesteps
from PIL import Image

from pipelines.errors import CancelledError, DeviceLostError, OutOfMemoryError
from pipelines.types import (
    SIZE_MULTIPLE_PIXELS,
    GeneratedImage,
    GenerationRequest,
    GenerationSettings,
    IsCancelled,
    OnStep,
    Stage,
    Step,
    Timings,
)

T = TypeVar("T")

REFERENCE_AREA_PIXELS = 1024 * 1024
"""A larger reference image is scaled down to this area, as `Flux2Pipeline` does."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What steers the denoising, the same for all images of a request."""

    prompt_embeds: torch.Tensor  # (1, 512, 3 * text width)
    text_ids: torch.Tensor  # (1, 512, 4): positions on the axes T, H, W, L
    reference_tokens: torch.Tensor | None  # (1, R, C)
    reference_ids: torch.Tensor | None  # (1, R, 4)


class Flux2:
    """A loaded FLUX.2 [dev]. Fulfils `pipelines.types.Pipeline`; one request at a time."""

    def __init__(self, pipe: Flux2Pipeline, device: torch.device) -> None:
        self._pipe = pipe
        self._device = device

    def generate(
        self, request: GenerationRequest, on_step: OnStep, is_cancelled: IsCancelled
    ) -> Iterator[GeneratedImage]:
        """Yield the request's images in order; image i is exactly what seed + i gives alone.

        The images are denoised one after the other: each is on its way to the caller while the
        next is made, and a cancel costs one step of one image. Raises as
        `pipelines.types.Pipeline` says.
        """
        started = time.monotonic()
        _stop_if(is_cancelled)
        condition = _on_device(lambda: self.encode(request.prompt, request.reference_images))
        on_step(Step(Stage.ENCODE, 0, 1, 1))
        encode_seconds = time.monotonic() - started
        for index in range(request.num_images):
            image = partial(
                self._make_image, request, index, condition, encode_seconds, on_step, is_cancelled
            )
            yield _on_device(image)
            encode_seconds = 0.0

    def release_memory(self) -> None:
        """Return cached blocks to the device. What failed must have let go of its tensors."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def encode(self, prompt: str, reference_images: Sequence[Path] = ()) -> Condition:
        """Turn the prompt and the reference images into what the transformer attends to."""
        prompt_embeds, text_ids = self._pipe.encode_prompt(prompt, device=self._device)
        if not reference_images:
            return Condition(prompt_embeds, text_ids, None, None)
        pixels = [self._load_reference(path) for path in reference_images]
        tokens, ids = self._pipe.prepare_image_latents(
            images=pixels,
            batch_size=1,
            generator=None,  # the encoder's mode is taken, nothing is drawn
            device=self._device,
            dtype=self._pipe.vae.dtype,
        )
        return Condition(prompt_embeds, text_ids, tokens, ids)

    @torch.no_grad()
    def prepare(self, seed: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the noise that the image is made from.

        Returns tokens (1, S, C) and their position ids (1, S, 4). The noise comes from a CPU
        generator, so that a seed means the same on every device.
        """
        tokens, ids = self._pipe.prepare_latents(
            batch_size=1,
            num_latents_channels=self._pipe.transformer.config.in_channels // 4,
            height=height,
            width=width,
            dtype=self._pipe.text_encoder.dtype,
            device=self._device,
            generator=torch.Generator("cpu").manual_seed(seed),
        )
        return tokens, ids

    @torch.no_grad()
    def denoise(
        self,
        latents: torch.Tensor,
        latent_ids: torch.Tensor,
        condition: Condition,
        settings: GenerationSettings,
        image_index: int,
        on_step: OnStep,
        is_cancelled: IsCancelled,
    ) -> torch.Tensor:
        """Take the noise out of `latents` (1, S, C), step by step.

        `on_step` hears of every step that the device has finished; `is_cancelled` is asked
        before each. Raises `CancelledError`.
        """
        scheduler = self._make_scheduler(latents.shape[1], settings)
        guidance = torch.full(
            [1], settings.guidance_scale, device=self._device, dtype=torch.float32
        )
        image_tokens = latents.shape[1]
        ids = latent_ids
        if condition.reference_ids is not None:
            ids = torch.cat([latent_ids, condition.reference_ids], dim=1)
        pace = _Pace(self._device)
        steps = len(scheduler.timesteps)
        for index, timestep in enumerate(scheduler.timesteps):
            _stop_if(is_cancelled)
            tokens = latents
            if condition.reference_tokens is not None:
                tokens = torch.cat([latents, condition.reference_tokens], dim=1)
            velocity = self._pipe.transformer(
                hidden_states=tokens.to(self._pipe.transformer.dtype),
                timestep=timestep.expand(1).to(latents.dtype) / 1000,
                guidance=guidance,
                encoder_hidden_states=condition.prompt_embeds,
                txt_ids=condition.text_ids,
                img_ids=ids,
                return_dict=False,
            )[0][:, :image_tokens]
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            pace.keep()
            on_step(Step(Stage.DENOISE, image_index, index + 1, steps))
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, width: int, height: int) -> Image.Image:
        """Turn denoised tokens (1, S, C) into an RGB picture of width x height pixels."""
        vae = self._pipe.vae
        rows, columns = height // SIZE_MULTIPLE_PIXELS, width // SIZE_MULTIPLE_PIXELS
        grid = latents.permute(0, 2, 1).reshape(1, -1, rows, columns)
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(grid.device, grid.dtype)
        variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
        deviation = torch.sqrt(variance).to(grid.device, grid.dtype)
        patches = self._pipe._unpatchify_latents(grid * deviation + mean)  # noqa: SLF001
        pixels = vae.decode(patches, return_dict=False)[0]
        pictures: list[Image.Image] = self._pipe.image_processor.postprocess(
            pixels, output_type="pil"
        )
        return pictures[0]

    def _make_image(
        self,
        request: GenerationRequest,
        index: int,
        condition: Condition,
        encode_seconds: float,
        on_step: OnStep,
        is_cancelled: IsCancelled,
    ) -> GeneratedImage:
        settings, seed = request.settings, request.seed + index
        started = time.monotonic()
        latents, ids = self.prepare(seed, settings.width, settings.height)
        latents = self.denoise(latents, ids, condition, settings, index, on_step, is_cancelled)
        denoised = time.monotonic()
        _stop_if(is_cancelled)
        picture = self.decode(latents, settings.width, settings.height)
        on_step(Step(Stage.DECODE, index, 1, 1))
        timings = Timings(encode_seconds, denoised - started, time.monotonic() - denoised)
        return GeneratedImage(index, seed, picture, timings)

    def _load_reference(self, path: Path) -> torch.Tensor:
        """Read one reference image as (1, 3, height, width) in [-1, 1], sides multiples of 16."""
        processor = self._pipe.image_processor
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        processor.check_image_input(picture)
        picture = processor._resize_if_exceeds_area(picture, REFERENCE_AREA_PIXELS)  # noqa: SLF001
        width, height = (
            side // SIZE_MULTIPLE_PIXELS * SIZE_MULTIPLE_PIXELS for side in picture.size
        )
        pixels: torch.Tensor = processor.preprocess(
            picture, height=height, width=width, resize_mode="crop"
        )
        return pixels

    def _make_scheduler(
        self, image_tokens: int, settings: GenerationSettings
    ) -> FlowMatchEulerDiscreteScheduler:
        """Make a scheduler of the request's own: it counts steps, so it must not be shared.

        Custom sigmas are shifted by the resolution like the default ones, as the Turbo model
        card's own code does.
        """
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._pipe.scheduler.config)
        steps = settings.num_inference_steps
        sigmas: Any = settings.sigmas
        if sigmas is None:
            sigmas = np.linspace(1.0, 1 / steps, steps)
        mu = compute_empirical_mu(image_seq_len=image_tokens, num_steps=steps)
        retrieve_timesteps(scheduler, steps, self._device, sigmas=list(sigmas), mu=mu)
        scheduler.set_begin_index(0)  # or the first step asks the device which step it is
        return scheduler


class _Pace:
    """Keeps the host one step ahead of a CUDA device and no more.

    Kernels are queued, not run, by the time a call returns. Waiting for the step before the one
    just queued keeps the device busy, and makes progress and cancel true to a step.
    """

    def __init__(self, device: torch.device) -> None:
        self._previous: torch.cuda.Event | None = None
        self._on_cuda = device.type == "cuda"

    def keep(self) -> None:
        """Note the step that was just queued and wait for the one before it."""
        if not self._on_cuda:
            return
        queued = torch.cuda.Event()  # type: ignore[no-untyped-call]
        queued.record()
        if self._previous:
            self._previous.synchronize()
        self._previous = queued


def _stop_if(is_cancelled: IsCancelled) -> None:
    if is_cancelled():
        raise CancelledError("cancelled by the caller")


def _on_device(work: Callable[[], T]) -> T:
    """Do the work, with torch's device errors translated into ours.

    Raised outside the `except` blocks, and so without a context: that would keep the old error's
    frames alive, and with them the tensors that must be freed.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        translated: Exception = OutOfMemoryError(str(error))
    except torch.AcceleratorError as error:
        translated = DeviceLostError(str(error))
    raise translated
