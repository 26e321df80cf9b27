"""FLUX.2, from prompt to pixels: encode, prepare, denoise, decode.

The model's parts are diffusers' own; the loop around them is ours, so that a request can be
watched, cancelled at a step, and never shares state with another one. With acceleration `none`
it gives bit for bit what `diffusers.Flux2Pipeline` gives, and of a klein what
`diffusers.Flux2KleinPipeline` gives; tests hold that. What the two do otherwise is in the recipe.

Shapes: B is always 1 (a batch gains nothing at this size, see docs/ARCHITECTURE.md), C = 128
latent channels, H and W the image's sides / 16, S = H * W image tokens, R reference tokens.
"""

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch
from PIL import Image

from pipelines.acceleration import compute_mask
from pipelines.cache import TensorCache
from pipelines.conditioning import Condition, ReferenceEncoder, TextEncoder
from pipelines.denoiser import Context, Denoiser, Pass, lead
from pipelines.device_errors import on_device
from pipelines.errors import CancelledError, OutOfMemoryError
from pipelines.language import NO_LANGUAGE, Language
from pipelines.plan import Plan
from pipelines.previews import FIT_SIDE_PIXELS, LatentColours, PreviewSeries
from pipelines.recipes import kind_of, recipe_of
from pipelines.schedule import make_schedule
from pipelines.streaming import Slots
from pipelines.transformers import Transformers
from pipelines.types import (
    CACHE_BYTES,
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
from pipelines.verdicts import SecondLook

log = structlog.get_logger(__name__)

WARM_UP_SIZE = (1024, 768)
"""fal's default size."""


class Flux2:
    """A loaded FLUX.2. Fulfils `pipelines.types.Pipeline`; one request at a time."""

    def __init__(
        self,
        pipe: Any,
        device: torch.device,
        transformers: Transformers,
        *,
        cache_bytes: int = CACHE_BYTES,
        plan: Plan | None = None,
        slots: Slots | None = None,
        language: Language = NO_LANGUAGE,
        build: str = "none",
    ) -> None:
        self._pipe = pipe
        self._device = device
        self._transformers = transformers
        self._recipe = recipe_of(kind_of(pipe))
        self._plan = plan
        self._slots = slots
        self._language = language
        self._decoder_is_compiled = False
        self._build = build
        self._colours: LatentColours | None = None
        cache = TensorCache(cache_bytes, device)
        self._text_encoder = TextEncoder(pipe, device, cache)
        self._reference_encoder = ReferenceEncoder(pipe, device, cache)

    @property
    def second_look(self) -> SecondLook | None:
        """What judges images again: see `pipelines.types.Pipeline`."""
        return self._language.second_look

    def generate(
        self, request: GenerationRequest, on_step: OnStep, is_cancelled: IsCancelled
    ) -> Iterator[GeneratedImage]:
        """Yield the request's images in order; image i is exactly what seed + i gives alone.

        The images are denoised one after the other: each is on its way to the caller while the
        next is made, and a cancel costs one step of one image. Raises as
        `pipelines.types.Pipeline` says. Whatever becomes of it, no LoRA stays on behind it.
        """
        try:
            yield from self._generate(request, on_step, is_cancelled)
        finally:
            self._transformers.let_go()

    def _generate(
        self, request: GenerationRequest, on_step: OnStep, is_cancelled: IsCancelled
    ) -> Iterator[GeneratedImage]:
        started = time.monotonic()
        _stop_if(is_cancelled)
        # If there is none, or a LoRA does not fit it, tell before any work.
        on_device(lambda: self._transformers.choose(request.settings))
        with self._streaming():
            prompt = on_device(lambda: self._language.choose_prompt(request, is_cancelled))
            negative = self._recipe.negative_prompt(request.settings)
            condition = on_device(lambda: self.encode(prompt, request.reference_images, negative))
        self._admit(request.settings, condition)
        if request.previews and self._colours is None:
            self._colours = on_device(self.fit_colours)
        on_step(Step(Stage.ENCODE, 0, 1, 1))
        encode_seconds = time.monotonic() - started
        for index in range(request.num_images):
            image = partial(self._make_image, request, index, condition, on_step, is_cancelled)
            picture, denoise_seconds, decode_seconds = on_device(image)
            timings = Timings(encode_seconds, denoise_seconds, decode_seconds)
            yield GeneratedImage(index, request.seed + index, picture, timings, prompt)
            encode_seconds = 0.0

    def describe(self, settings: GenerationSettings) -> Mapping[str, str]:
        """Tell how an image with these settings is really made: see `pipelines.types.Pipeline`."""
        mask = compute_mask(settings.acceleration, settings.num_inference_steps)
        return {
            "acceleration": settings.acceleration.value,
            **on_device(lambda: self._transformers.choose(settings)).description,
            "size": f"{settings.width}x{settings.height}",
            "steps": str(len(mask)),
            "computed_steps": str(sum(mask)),
            "guidance_scale": f"{self._recipe.guidance_scale(settings):g}",
            "build": self._build,
        }

    def warm_up(self) -> None:
        """Compile what is compiled at first use, so that no request waits for it.

        One step without and one with a reference: other sizes use the same kernels.
        """
        width, height = WARM_UP_SIZE
        if self._decoder_is_compiled:
            self._warm_up_decoder(width, height)
        request = GenerationSettings(
            width=width, height=height, num_inference_steps=1, guidance_scale=1.0
        )
        for tree in self._transformers.with_adapted:
            if not tree.compiled:
                continue
            alone = Flux2(self._pipe, self._device, Transformers(exact=tree), cache_bytes=0)
            latents, ids = alone.prepare(0, width, height)
            with self._streaming():
                plain = alone.encode("")
            edit = replace(plain, reference_tokens=latents, reference_ids=ids)
            with self._streaming():
                for condition in (plain, edit):
                    alone.denoise(
                        latents, ids, condition, request, 0, lambda _: None, lambda: False
                    )

    def compile_decoder(self) -> None:
        """Let the VAE's decoder run as compiled kernels, with channels last in memory.

        That suits the convolutions of tensor cores, and rounds otherwise than `Flux2Pipeline`.
        """
        self._pipe.vae.decoder.to(memory_format=torch.channels_last)
        self._pipe.vae.decoder.compile(dynamic=True)
        self._decoder_is_compiled = True

    def release_memory(self) -> None:
        """Return cached blocks to the device. What failed must have let go of its tensors."""
        self._transformers.keep_only()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def encode(
        self,
        prompt: str,
        reference_images: Sequence[Path] = (),
        negative_prompt: str | None = None,
    ) -> Condition:
        """Turn the prompt and the reference images into what the transformer attends to.

        With a negative prompt, if only an empty one, every step has a second pass.
        """
        prompt_embeds = self._text_encoder.encode(prompt)
        text_ids = self._pipe._prepare_text_ids(prompt_embeds).to(self._device)  # noqa: SLF001
        tokens, ids = None, None
        if reference_images:
            tokens, ids = self._reference_encoder.encode(reference_images)
        negative_embeds = None
        if negative_prompt is not None:
            negative_embeds = self._text_encoder.encode(negative_prompt)
        return Condition(prompt_embeds, text_ids, tokens, ids, negative_embeds)

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
        previews: PreviewSeries | None = None,
    ) -> torch.Tensor:
        """Take the noise out of `latents` (1, S, C), step by step.

        `on_step` hears of every step that the device has finished; `is_cancelled` is asked
        before each. Raises `CancelledError`.
        """
        denoiser = self._transformers.choose(settings).denoiser
        image_tokens = latents.shape[1]
        schedule = make_schedule(
            self._pipe.scheduler.config,
            image_tokens,
            settings,
            self._device,
            shift=self._transformers.shift_for(settings),
        )
        mask = compute_mask(settings.acceleration, settings.num_inference_steps)
        contexts = _make_contexts(denoiser, latent_ids, condition, settings)
        passes = [
            Pass(denoiser, context, image_tokens, has_gaps=not all(mask)) for context in contexts
        ]
        pace = _Pace(self._device)
        for index, computed in enumerate(mask):
            _stop_if(is_cancelled)
            timestep = schedule.timesteps[index : index + 1].to(latents.dtype)
            level = denoiser.embed_level(timestep, contexts[0])
            embedded, sigma = denoiser.embed(latents), schedule.sigmas[index]
            velocity = lead(
                [one.velocity(embedded, level, sigma, computed=computed) for one in passes],
                settings.guidance_scale,
            )
            if previews:
                previews.note(latents, velocity, sigma, index)
            latents = schedule.step(latents, velocity, index)
            pace.keep()
            preview = previews.take() if previews else None
            on_step(Step(Stage.DENOISE, image_index, index + 1, len(mask), preview))
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

    @torch.no_grad()
    def fit_colours(self) -> LatentColours:
        """Fit what previews are painted with to this VAE: some pictures there and back."""
        side = FIT_SIDE_PIXELS

        def roundtrip(picture: torch.Tensor) -> tuple[torch.Tensor, Image.Image]:
            tokens = self._reference_encoder.encode_pixels(picture)
            return tokens, self.decode(tokens, side, side)

        return LatentColours.fit(roundtrip, self._device)

    def _warm_up_decoder(self, width: int, height: int) -> None:
        """Compile the decoder, or leave it as it was where that fails: no image may fail for it."""
        latents, _ = self.prepare(0, width, height)
        try:
            self.decode(latents, width, height)
        except Exception:
            log.exception("the VAE's decoder cannot be compiled")
            self._pipe.vae.decoder._compiled_call_impl = None  # noqa: SLF001  (what `compile` set)
            self._decoder_is_compiled = False

    @contextlib.contextmanager
    def _streaming(self) -> Iterator[None]:
        """Give back at the end what streamed weights passed through."""
        try:
            yield
        finally:
            if self._slots:
                self._slots.release()

    def _admit(self, settings: GenerationSettings, condition: Condition) -> None:
        """Refuse what would not fit before it has cost anything; see `Plan.peak_bytes`."""
        if self._plan is None:
            return
        image_tokens = settings.width * settings.height // SIZE_MULTIPLE_PIXELS**2
        references = condition.reference_tokens
        request = image_tokens, 0 if references is None else references.shape[1]
        if not self._plan.fits(request, self._transformers.lora_bytes):
            self._transformers.keep_only(settings)
        lora_bytes = self._transformers.lora_bytes
        if not self._plan.fits(request, lora_bytes):
            peak_bytes = self._plan.peak_bytes(*request, lora_bytes)
            free_bytes = self._plan.free_bytes
            raise OutOfMemoryError(
                f"{request[0]} tokens with {request[1]} of references need {peak_bytes / 1e9:.1f} "
                f"GB, profile {self._plan.profile} has {free_bytes / 1e9:.1f} GB"
            )

    def _make_image(
        self,
        request: GenerationRequest,
        index: int,
        condition: Condition,
        on_step: OnStep,
        is_cancelled: IsCancelled,
    ) -> tuple[Image.Image, float, float]:
        """Return an image, and the seconds that denoising and decoding took."""
        settings, started = request.settings, time.monotonic()
        latents, ids = self.prepare(request.seed + index, settings.width, settings.height)
        previews = None
        if request.previews and self._colours:
            size = settings.width, settings.height
            previews = PreviewSeries(self._colours, *size, settings.num_inference_steps)
        with self._streaming():
            latents = self.denoise(
                latents, ids, condition, settings, index, on_step, is_cancelled, previews
            )
        denoised = time.monotonic()
        _stop_if(is_cancelled)
        picture = self.decode(latents, settings.width, settings.height)
        on_step(Step(Stage.DECODE, index, 1, 1))
        return picture, denoised - started, time.monotonic() - denoised


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


def _make_contexts(
    denoiser: Denoiser,
    latent_ids: torch.Tensor,
    condition: Condition,
    settings: GenerationSettings,
) -> list[Context]:
    """Make what the steps have in common, for each of their passes."""
    ids = latent_ids
    if condition.reference_ids is not None:
        ids = torch.cat([latent_ids, condition.reference_ids], dim=1)
    context = denoiser.prepare(
        condition.prompt_embeds,
        condition.text_ids,
        ids,
        condition.reference_tokens,
        settings.guidance_scale,
    )
    if condition.negative_embeds is None:
        return [context]
    return [context, denoiser.with_prompt(context, condition.negative_embeds)]


def _stop_if(is_cancelled: IsCancelled) -> None:
    if is_cancelled():
        raise CancelledError("cancelled by the caller")
