"""Pipelines that need no model: instant ones, and ones that fail in every way a runner can.

A runner is told to use one by `pipeline_factory="fault_pipelines:NAME"`, with this folder on its
PYTHONPATH. What a request does is chosen by its prompt.
"""

import ctypes
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.errors import (
    CancelledError,
    DeviceLostError,
    LoraRefusedError,
    ModelNotFoundError,
    OutOfMemoryError,
    PromptRefusedError,
)
from pipelines.types import (
    GeneratedImage,
    GenerationRequest,
    GenerationSettings,
    IsCancelled,
    OnLoadProgress,
    OnStep,
    Stage,
    Step,
    Timings,
)

GATED_STEPS = 6
FLAKY_LOADS = 5
HANG_SECONDS = 600


HALF = "\ud800"
"""Half of a character, which no message can hold."""

HOLD_STEPS = 1_000_000_000
"""More than are ever taken: after the last step another limit, that of the decode, would count."""


class TroublesomePicture(Image.Image):
    """A picture that is drawn well, and makes trouble when it is encoded."""

    def __init__(self, picture: Image.Image, word: str, rest: str) -> None:
        super().__init__()
        self.__dict__.update(picture.__dict__)
        self._word = word
        self._rest = rest

    def save(self, *arguments: Any, **options: Any) -> None:
        """Wait for the file that the prompt names, if any; then save, fail or end the process."""
        pause = threading.Event()
        while not Path(self._rest).exists():
            pause.wait(0.002)
        if self._word == "encode-error":
            raise ValueError("no such pixel, in /secret/path")
        if self._word == "encode-die":
            os.kill(os.getpid(), signal.SIGKILL)
        super().save(*arguments, **options)


class FaultPipeline:
    """Does what the prompt's first word says; any other prompt gives plain images at once."""

    def __init__(self) -> None:
        self._memory_released = False

    second_look = None

    def release_memory(self) -> None:
        """Remember that it was asked to."""
        self._memory_released = True

    def describe(self, settings: GenerationSettings) -> dict[str, str]:
        """Tell the level that was asked for; LoRAs fit after the cache is emptied."""
        if settings.loras and not self._memory_released:
            raise OutOfMemoryError("the LoRAs fit after the cache is emptied")
        return {"acceleration": settings.acceleration.value, "precision": "float32", "lora": "none"}

    def generate(
        self, request: GenerationRequest, on_step: OnStep, is_cancelled: IsCancelled
    ) -> Iterator[GeneratedImage]:
        """Yield images of one colour, the seed's, or fail as asked."""
        word, _, rest = request.prompt.partition(" ")
        if word == "once":
            word = _first_time(*rest.split(" "))
        self._fail(word)
        on_step(Step(Stage.ENCODE, 0, 1, 1))
        if word in ("hold", "late"):
            self._hold(request, on_step, is_cancelled)
        if word == "late":
            raise ValueError("a fault of ours after some steps, with /secret/path")
        if word == "gated":
            self._pass_gates(Path(rest), on_step, is_cancelled)
        if word in ("hang", "spin", "seize"):
            _hang(word, on_step)
        settings = request.settings
        for index in range(request.num_images):
            seed = request.seed + index
            picture = Image.new("RGB", (settings.width, settings.height), (seed % 256, 0, 0))
            if word.startswith("encode-"):
                picture = TroublesomePicture(picture, word, rest)
            on_step(Step(Stage.DECODE, index, 1, 1))
            timings = Timings(0.0, 0.0, 0.0)
            prompt = HALF if word == "unsayable" else request.prompt
            yield GeneratedImage(index, seed, picture, timings, prompt)

    def _fail(self, word: str) -> None:
        """Fail before the first step, if this word asks for it."""
        if word == "oom":
            raise OutOfMemoryError("too little memory for this one")
        if word == "oom-once" and not self._memory_released:
            raise OutOfMemoryError("it fits after the cache is emptied")
        if word == "refuse":
            raise PromptRefusedError("the criterion that it meets")
        if word == "refuse-lora":
            raise LoraRefusedError(1, f"{HALF} is no linear layer" + "x" * 1_000_000)
        if word == "error":
            raise ValueError("a fault of ours, with /secret/path")
        if word == "lost":
            raise DeviceLostError("an illegal memory access was encountered")
        if word in ("die", "segfault"):
            os.kill(os.getpid(), signal.SIGKILL if word == "die" else signal.SIGSEGV)

    def _hold(self, request: GenerationRequest, on_step: OnStep, is_cancelled: IsCancelled) -> None:
        """Take steps until cancelled, or until the file that the prompt names exists."""
        _, _, gate = request.prompt.partition(" ")
        pause = threading.Event()
        step = 0
        while not is_cancelled():
            if gate and os.path.exists(gate):  # noqa: PTH110  (plain on purpose: a hot loop)
                return
            step += 1
            on_step(Step(Stage.DENOISE, 0, step, HOLD_STEPS, _preview_for(request)))
            pause.wait(0.01)
        raise CancelledError("cancelled by the caller")

    def _pass_gates(self, folder: Path, on_step: OnStep, is_cancelled: IsCancelled) -> None:
        """Take each step when the file of its number is in the folder, unless cancelled."""
        pause = threading.Event()
        for step in range(1, GATED_STEPS + 1):
            while not (folder / str(step)).exists():
                if is_cancelled():
                    raise CancelledError("cancelled by the caller")
                pause.wait(0.002)
            on_step(Step(Stage.DENOISE, 0, step, GATED_STEPS))


def _preview_for(request: GenerationRequest) -> Image.Image | None:
    """Return a small picture of the seed's colour, if the request wants previews."""
    return Image.new("RGB", (64, 64), (request.seed % 256, 0, 0)) if request.previews else None


def _first_time(flag: str, word: str) -> str:
    """Return the word once for each flag file, which need not exist yet, and then no fault."""
    if Path(flag).exists():
        return "plain"
    Path(flag).touch()
    return word


def _hang(word: str, on_step: OnStep) -> None:
    """Take one step and no other, deaf to SIGTERM: waiting, computing, or holding the GIL.

    With the GIL held not even the thread that watches the gateway's socket runs.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    on_step(Step(Stage.DENOISE, 0, 1, 3))
    while word == "spin":
        pass
    if word == "seize":
        ctypes.PyDLL(None).sleep(HANG_SECONDS)
    threading.Event().wait(HANG_SECONDS)


def instant(_options: Any, _on_progress: OnLoadProgress) -> tuple[FaultPipeline, str]:
    """Load at once."""
    return FaultPipeline(), "a fault pipeline"


def missing(_options: Any, _on_progress: OnLoadProgress) -> tuple[FaultPipeline, str]:
    """Find no model."""
    raise ModelNotFoundError("/models/flux2/vae/config.json: missing")


def stillborn(_options: Any, _on_progress: OnLoadProgress) -> tuple[FaultPipeline, str]:
    """End the process while loading."""
    os._exit(9)


def flaky(options: Any, _on_progress: OnLoadProgress) -> tuple[FaultPipeline, str]:
    """Find no model five times; the times are counted in the model's folder."""
    counter = Path(options.model) / "loads"
    loads = int(counter.read_text(encoding="ascii")) if counter.exists() else 0
    counter.write_text(str(loads + 1), encoding="ascii")
    if loads < FLAKY_LOADS:
        raise ModelNotFoundError(f"load {loads + 1} finds no model")
    return FaultPipeline(), "a fault pipeline, at last"


def endless(_options: Any, _on_progress: OnLoadProgress) -> tuple[FaultPipeline, str]:
    """Load for longer than anybody waits."""
    threading.Event().wait(HANG_SECONDS)
    raise ModelNotFoundError("nothing after all")


def gradual(options: Any, on_progress: OnLoadProgress) -> tuple[FaultPipeline, str]:
    """Load half, wait for the file `gate` in the model's folder, and load the rest."""
    on_progress("transformer", 0.0)
    on_progress("transformer", 0.5)
    on_progress("warm_up", 0.25)
    pause = threading.Event()
    while not (Path(options.model) / "gate").exists():
        pause.wait(0.002)
    on_progress("warm_up", 1.0)
    return FaultPipeline(), "a fault pipeline, bit by bit"


def by_folder(options: Any, _on_progress: OnLoadProgress) -> tuple[FaultPipeline, str]:
    """Load what the model's folder says: not while it has `held`, and not at all with `broken`."""
    folder, pause = Path(options.model), threading.Event()
    while (folder / "held").exists():
        pause.wait(0.002)
    if (folder / "broken").exists():
        raise ModelNotFoundError(f"{folder / 'broken'}: there")
    return FaultPipeline(), f"a fault pipeline of {folder.name}"


def describe_environment(_options: Any, _on_progress: OnLoadProgress) -> tuple[FaultPipeline, str]:
    """Load at once, and describe the environment the runner was started with."""
    return FaultPipeline(), json.dumps(dict(os.environ))
