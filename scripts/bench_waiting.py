"""The pipeline of `scripts/bench overlap`: it draws by waiting, and notes when.

Its factory is found by import path, with this folder on PYTHONPATH.
"""

import os
import random
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.types import (
    GeneratedImage,
    GenerationRequest,
    GenerationSettings,
    IsCancelled,
    OnStep,
    Stage,
    Step,
    Timings,
)

SECONDS, RECORD = "BENCH_DRAWING_SECONDS", "BENCH_DRAWING_RECORD"
"""Environment variables: how long a drawing takes, and the file of when each began and ended."""


class WaitingPipeline:
    """Waits as long for each step as a device would compute, and uses no core meanwhile."""

    def release_memory(self) -> None:
        """Have none to give back."""

    def describe(self, settings: GenerationSettings) -> dict[str, str]:
        """Tell the level that was asked for."""
        return {"acceleration": settings.acceleration.value, "precision": "float32", "lora": "none"}

    def generate(
        self, request: GenerationRequest, on_step: OnStep, _is_cancelled: IsCancelled
    ) -> Iterator[GeneratedImage]:
        """Yield the one picture of a request, after all its steps."""
        steps = request.settings.num_inference_steps
        picture = make_picture(request.settings.width)
        began = time.monotonic()
        for step in range(1, steps + 1):
            time.sleep(float(os.environ[SECONDS]) / steps)
            on_step(Step(Stage.DENOISE, 0, step, steps))
        with Path(os.environ[RECORD]).open("a", encoding="ascii") as record:
            record.write(f"{began} {time.monotonic()}\n")
        yield GeneratedImage(0, request.seed, picture, Timings(0.0, 0.0, 0.0))


@cache
def make_picture(side: int) -> Image.Image:
    """Make a picture that is as hard to compress as a photograph: smooth, with some noise."""
    draw = random.Random(5)  # noqa: S311
    small = Image.frombytes("RGB", (side // 32, side // 32), draw.randbytes((side // 32) ** 2 * 3))
    smooth = small.resize((side, side), Image.Resampling.BICUBIC)
    return Image.blend(smooth, Image.effect_noise((side, side), 60).convert("RGB"), 0.1)


def load(_options: Any, _on_progress: Any = None) -> tuple[WaitingPipeline, str]:
    """Load at once."""
    return WaitingPipeline(), "a pipeline that waits"
