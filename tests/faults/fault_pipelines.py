"""Pipelines that need no model: instant ones, and ones that fail in every way a runner can.

A runner is told to use one by `pipeline_factory="fault_pipelines:NAME"`, with this folder on its
PYTHONPATH. What a request does is chosen by its prompt.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from PIL import Image

from pipelines.errors import (
    CancelledError,
    DeviceLostError,
    ModelNotFoundError,
    OutOfMemoryError,
)
from pipelines.types import (
    GeneratedImage,
    GenerationRequest,
    IsCancelled,
    OnStep,
    Stage,
    Step,
    Timings,
)


class FaultPipeline:
    """Does what the prompt's first word says; any other prompt gives plain images at once."""

    def __init__(self) -> None:
        self._memory_released = False

    def release_memory(self) -> None:
        """Remember that it was asked to."""
        self._memory_released = True

    def generate(
        self, request: GenerationRequest, on_step: OnStep, is_cancelled: IsCancelled
    ) -> Iterator[GeneratedImage]:
        """Yield images of one colour, the seed's, or fail as asked."""
        word = request.prompt.split(" ")[0]
        if word == "oom":
            raise OutOfMemoryError("too little memory for this one")
        if word == "oom-once" and not self._memory_released:
            raise OutOfMemoryError("it fits after the cache is emptied")
        if word == "error":
            raise ValueError("a fault of ours, with /secret/path")
        if word == "lost":
            raise DeviceLostError("an illegal memory access was encountered")
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        on_step(Step(Stage.ENCODE, 0, 1, 1))
        if word == "hold":
            self._hold(request, on_step, is_cancelled)
        settings = request.settings
        for index in range(request.num_images):
            seed = request.seed + index
            picture = Image.new("RGB", (settings.width, settings.height), (seed % 256, 0, 0))
            on_step(Step(Stage.DECODE, index, 1, 1))
            yield GeneratedImage(index, seed, picture, Timings(0.0, 0.0, 0.0))

    def _hold(self, request: GenerationRequest, on_step: OnStep, is_cancelled: IsCancelled) -> None:
        """Take steps until cancelled, or until the file that the prompt names exists."""
        _, _, gate = request.prompt.partition(" ")
        pause = threading.Event()
        step = 0
        while not is_cancelled():
            if gate and os.path.exists(gate):  # noqa: PTH110  (plain on purpose: a hot loop)
                return
            step += 1
            on_step(Step(Stage.DENOISE, 0, min(step, 3), 3))
            pause.wait(0.01)
        raise CancelledError("cancelled by the caller")


def instant(_options: Any) -> tuple[FaultPipeline, str]:
    """Load at once."""
    return FaultPipeline(), "a fault pipeline"


def missing(_options: Any) -> tuple[FaultPipeline, str]:
    """Find no model."""
    raise ModelNotFoundError("/models/flux2/vae/config.json: missing")


def stillborn(_options: Any) -> tuple[FaultPipeline, str]:
    """End the process while loading."""
    os._exit(9)


def describe_environment(_options: Any) -> tuple[FaultPipeline, str]:
    """Load at once, and describe the environment the runner was started with."""
    return FaultPipeline(), json.dumps(dict(os.environ))
