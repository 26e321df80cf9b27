"""Our pipeline and plain diffusers over the same random weights, and the time that each takes."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_models import build_pipe, write_lora
from PIL import Image

from pipelines.assembly import assemble
from pipelines.flux2 import Flux2
from pipelines.memory import Card, choose_plan, fastest_of
from pipelines.model_size import read_model_size
from pipelines.plan import PIXELS_PER_TOKEN, Layout
from pipelines.types import (
    Acceleration,
    GenerationRequest,
    GenerationSettings,
    LoadOptions,
    OnStep,
    Precision,
)
from pipelines.variants import BLOCK_LISTS, derive

PLENTY_BYTES = 10**13
"""More memory than anything takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of picture. Every run of it has a prompt, a seed and references of its own."""

    level: Acceleration = Acceleration.NONE
    width: int = 512
    height: int = 512
    steps: int = 28
    references: int = 0
    flash: bool = False
    previews: bool = False

    @property
    def settings(self) -> GenerationSettings:
        """The same, as a pipeline takes it."""
        return GenerationSettings(
            width=self.width,
            height=self.height,
            num_inference_steps=self.steps,
            guidance_scale=2.5,
            acceleration=self.level,
            flash=self.flash,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One run: the picture, and seconds of wall time; of its stages, if it is ours.

    `cpu_seconds` are those of all threads of the process.
    """

    picture: Image.Image
    seconds: float
    cpu_seconds: float
    encode_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0


class Rig:
    """A model of some scale on a device, to be asked by both ways in turns."""

    def __init__(
        self,
        scale: str,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path,
        *,
        compiled: bool = False,
    ) -> None:
        self.device = device
        self._folder = folder
        self.pipe = build_pipe(scale, device, dtype)
        rank = 256 if scale == "full" else 4
        self._lora = write_lora(self.pipe.transformer, folder / "lora.safetensors", rank)
        self.ours = self.make_pipeline(compiled=compiled)

    def make_pipeline(self, *, compiled: bool) -> Flux2:
        """Make ours over the same weights; compiling leaves diffusers' and the other ones alone."""
        blocks = [
            f"{name}.{number}"
            for name in BLOCK_LISTS
            for number in range(len(getattr(self.pipe.transformer, name)))
        ]
        own = derive(self.pipe.transformer, dict.fromkeys(blocks, lambda block: derive(block, {})))
        options = LoadOptions(
            model=self._folder, compile="on" if compiled else "off", flash_lora=self._lora
        )
        fast = None
        if self.device.type == "cuda":
            fast = fastest_of(torch.cuda.get_device_capability(self.device))
        layout = Layout(
            exact=True,
            exact_precision=Precision(str(own.dtype).removeprefix("torch.")),
            fast=fast,
            flash="attached" if fast else "fused",
        )
        pipe = copy.copy(self.pipe)
        pipe.vae = copy.deepcopy(self.pipe.vae)
        pipeline = Flux2(pipe, self.device, assemble(own, self.device, options, layout))
        if compiled and self.device.type == "cuda":
            pipeline.compile_decoder()
        return pipeline

    def planned_bytes(self, case: Case) -> int:
        """Say what a picture of this case takes beside weights, by the plan's arithmetic."""
        for name in ("transformer", "vae"):
            getattr(self.pipe, name).save_config(self._folder / name)
        self.pipe.text_encoder.config.save_pretrained(self._folder / "text_encoder")
        on_cuda = self.device.type == "cuda"
        card = Card(
            name="any",
            kind="cuda" if on_cuda else "cpu",
            capability=torch.cuda.get_device_capability(self.device) if on_cuda else None,
            total_bytes=PLENTY_BYTES,
            free_bytes=PLENTY_BYTES,
            host_free_bytes=PLENTY_BYTES,
        )
        plan = choose_plan(card, read_model_size(self._folder, self._lora))
        area = min(1024, case.width) ** 2 * case.references
        return (
            plan.peak_bytes(case.width * case.height // PIXELS_PER_TOKEN, area // PIXELS_PER_TOKEN)
            - plan.weights_bytes
        )

    def run_ours(
        self,
        case: Case,
        number: int,
        pipeline: Flux2 | None = None,
        on_step: OnStep = lambda _: None,
    ) -> Run:
        """Make picture `number` of a case with ours."""
        request = GenerationRequest(
            request_id="bench",
            prompt=_prompt(case, number),
            seed=number,
            num_images=1,
            settings=case.settings,
            reference_images=tuple(self._references(case, number)),
            previews=case.previews,
        )
        started, cpu_started = self._now(), time.process_time()
        (made,) = (pipeline or self.ours).generate(request, on_step, lambda: False)
        seconds, timings = self._now() - started, made.timings
        return Run(
            made.image,
            seconds,
            time.process_time() - cpu_started,
            timings.encode_seconds,
            timings.denoise_seconds,
            timings.decode_seconds,
        )

    def run_plain(self, case: Case, number: int) -> Run:
        """Make the same picture with `Flux2Pipeline.__call__`."""
        references = [Image.open(path).convert("RGB") for path in self._references(case, number)]
        started, cpu_started = self._now(), time.process_time()
        picture = self.pipe(
            image=references or None,
            prompt=_prompt(case, number),
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=2.5,
            generator=torch.Generator("cpu").manual_seed(number),
        ).images[0]
        return Run(picture, self._now() - started, time.process_time() - cpu_started)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _references(self, case: Case, number: int) -> list[Path]:
        """Write pictures that no other run has seen; a megapixel each where that is made."""
        side = min(1024, case.width)
        paths = []
        for index in range(case.references):
            path = self._folder / f"{side}-{number}-{index}.png"
            if not path.exists():
                random = torch.Generator().manual_seed(1000 * number + index)
                small = torch.randint(0, 256, (8, 8, 3), generator=random, dtype=torch.uint8)
                Image.fromarray(small.numpy()).resize((side, side)).save(path, compress_level=1)
            paths.append(path)
        return paths


def run_pairs(
    pairs: int, one: Callable[[int], Run], other: Callable[[int], Run]
) -> tuple[list[Run], list[Run]]:
    """Run both ways `pairs` times, each way first in turns: what goes second finds warm caches."""
    first, second = [], []
    for number in range(pairs):
        if number % 2:
            second.append(other(number))
            first.append(one(number))
        else:
            first.append(one(number))
            second.append(other(number))
    return first, second


def median_ratio(baseline: Sequence[Run], ours: Sequence[Run]) -> float:
    """Say how many times as fast ours is, by the medians."""
    return statistics.median(run.seconds for run in baseline) / statistics.median(
        run.seconds for run in ours
    )


def _prompt(case: Case, number: int) -> str:
    """Say something that was not said before in this run, or a cache would be measured."""
    return f"{case.level} {case.width} {case.steps} {case.references} number {number}"
