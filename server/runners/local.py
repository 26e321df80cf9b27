"""A runner as a child process of the gateway, seen from the gateway."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata

import structlog

from pipelines.types import GenerationRequest, Model, Stage
from server.children import spawn
from server.runners.connection import Connection, RunnerAbsentError, RunnerDiedError
from server.runners.messages import (
    Cancel,
    Done,
    Drawn,
    Failed,
    Image,
    Load,
    LoadFailed,
    Loading,
    Preview,
    Progress,
    Ready,
    Run,
)
from server.schemas import OutputFormat
from server.settings import ENV_PREFIX

log = structlog.get_logger(__name__)

HANG_FACTOR = 10
UNROUNDED_FROM = (2, 13)
"""The version of torch from which pinned memory can be had without rounding up."""
FIRST_STAGE = "start"
"""Of loading: the imports, before the pipeline factory tells of anything."""

RUNNER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Threads that spin while they wait starve the gateway where both share a few cores.
    "OMP_WAIT_POLICY": "passive",
}
"""Set before the child imports anything: the hub libraries read these at import."""


class RunnerState(StrEnum):
    """What the gateway knows of its runner."""

    STOPPED = "stopped"
    LOADING = "loading"
    READY = "ready"


class RunnerLoadError(Exception):
    """The child could not load its pipeline; the message says why."""


class GenerationFailedError(Exception):
    """The runner is well, but this request came to nothing."""

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.detail)
        self.reason = failure.reason
        self.index = failure.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a child may be silent before it is taken for hung."""

    load_seconds: float
    stage_seconds: float
    step_seconds: float


@dataclass(slots=True)
class Generated:
    """Everything that came back for one request: images by index, then the summary."""

    done: Done | None = None
    images: dict[int, tuple[Image, bytes]] = field(default_factory=dict)


class LocalRunner:
    """Starts, feeds, cancels and stops one child process, which has one of some models loaded.

    Another model means another child: nothing of the one before can be left in its memory. It
    draws one request at a time, but the next `run` may begin as soon as the last one has told
    that it is drawn: its images are encoded meanwhile. `on_end` is called when the child is gone.
    """

    def __init__(self, loads: Mapping[Model, Load], limits: Limits) -> None:
        self.loads = loads
        self.model = next(iter(loads))
        self._limits = limits
        self._usual_step_seconds = 0.0
        self._connection: Connection | None = None
        self._problem: str | None = None
        self.on_end: Callable[[], None] = _do_nothing
        self.loading: Loading | None = None
        self.description: str | None = None
        self.load_seconds = 0.0

    @property
    def models(self) -> tuple[Model, ...]:
        """What it may load; `model` is the one that is, or was last, or will be first."""
        return tuple(self.loads)

    @property
    def state(self) -> RunnerState:
        """What can be done with it now."""
        if self.loading:
            return RunnerState.LOADING
        return RunnerState.READY if self.pid else RunnerState.STOPPED

    @property
    def problem(self) -> str | None:
        """Why it can make no image now, or None when it can."""
        if self.state is RunnerState.READY:
            return None
        return self._problem or f"the runner is {self.state}"

    @property
    def pid(self) -> int | None:
        """The child's process id, or None when there is none."""
        connection = self._connection
        return connection.pid if connection and connection.alive else None

    async def start(self, model: Model | None = None) -> None:
        """Start the child, after the one before has ended, and wait until its pipeline is loaded.

        That of `model`, or without one the same again. Raises `RunnerLoadError` or
        `RunnerDiedError`; there is no child then.
        """
        if model and model is not self.model:
            self.model = model
            self._usual_step_seconds = 0.0
        self.loading = Loading(stage=FIRST_STAGE, fraction=0.0)
        try:
            await self.stop()  # the device is free only when the last child is gone
            self._connection = await self._spawn()
            ready = await self._wait_loaded(self._connection)
        except (RunnerLoadError, RunnerDiedError) as error:
            await self.stop()
            self._problem = str(error)
            raise
        except asyncio.CancelledError:
            await self.stop()
            raise
        finally:
            self.loading = None
        if self.pid:  # it may have died since
            self._problem = None
        self.description = ready.description
        self.load_seconds = ready.load_seconds
        log.info(
            "runner ready",
            pid=self.pid,
            model=self.model,
            load_seconds=ready.load_seconds,
            pipeline=ready.description,
        )

    async def run(
        self,
        request: GenerationRequest,
        output_format: OutputFormat,
        on_progress: Callable[[Progress], None],
        on_drawn: Callable[[], None],
        on_preview: Callable[[Preview, bytes], None] | None = None,
    ) -> Generated:
        """Make the images of a request; `on_drawn` hears when the device is free again.

        `on_preview` gets the previews of a request that wants them, each with its bytes.

        Raises `GenerationFailedError` when only the request failed, `RunnerDiedError` when the
        child did (`RunnerAbsentError` when it had before): `start` makes a new one.
        """
        connection = self._connection
        if connection is None or not connection.alive:
            raise RunnerAbsentError("the runner is not running")
        generated = Generated()
        limit_seconds = self._limits.stage_seconds
        clock = asyncio.get_running_loop().time
        with connection.inbox(request.request_id) as inbox:
            await connection.send(Run(request=request, output_format=output_format))
            since = clock()
            while generated.done is None:
                message, payload = await inbox.receive(limit_seconds)
                if isinstance(message, Progress):
                    limit_seconds = self._limit_after(message, clock() - since)
                    since = clock()
                    on_progress(message)
                elif isinstance(message, Drawn):
                    limit_seconds = self._limits.stage_seconds
                    on_drawn()
                elif isinstance(message, Preview):
                    if on_preview:
                        on_preview(message, payload)
                elif isinstance(message, Image):
                    generated.images[message.index] = (message, payload)
                elif isinstance(message, Done):
                    generated.done = message
                elif isinstance(message, Failed):
                    raise GenerationFailedError(message)
        return generated

    def _limit_after(self, progress: Progress, waited_seconds: float) -> float:
        """Say how long the next message may take, and learn how long a step usually takes."""
        if progress.stage is Stage.DENOISE and progress.step > 1:
            previous = self._usual_step_seconds or waited_seconds
            self._usual_step_seconds = 0.9 * previous + 0.1 * waited_seconds
        if progress.stage is Stage.DENOISE and progress.step < progress.steps:
            return max(self._limits.step_seconds, HANG_FACTOR * self._usual_step_seconds)
        return self._limits.stage_seconds

    async def cancel(self, request_id: str) -> None:
        """Ask the child to stop this request at its next step; nothing happens if it is drawn."""
        if self._connection:
            with contextlib.suppress(RunnerDiedError):
                await self._connection.send(Cancel(request_id=request_id))

    async def stop(self) -> None:
        """End the child: it ends by itself when the socket closes, or else it is killed."""
        if self._connection:
            await self._connection.end("the runner was stopped")

    async def _spawn(self) -> Connection:
        # Our own variables reach the child as its first message, and the API key not at all.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)
        }
        child = await spawn(
            "server.runners.runner_main",
            environment={
                **inherited,
                **RUNNER_ENVIRONMENT,
                "PYTORCH_ALLOC_CONF": _allocator_settings(metadata.version("torch")),
            },
        )
        return Connection(child, self._limits.stage_seconds, self._note_end)

    def _note_end(self, reason: str) -> None:
        self._problem = reason
        self.on_end()

    async def _wait_loaded(self, connection: Connection) -> Ready:
        """Give the order to load, and keep the newest word about it until it is done."""
        with connection.inbox(None) as inbox:
            await connection.send(self.loads[self.model])
            while True:
                message, _ = await inbox.receive(self._limits.load_seconds)
                if isinstance(message, Ready):
                    return message
                if isinstance(message, LoadFailed):
                    raise RunnerLoadError(message.reason)
                if isinstance(message, Loading):
                    self.loading = message


def _allocator_settings(torch_version: str) -> str:
    """Keep reference images of many sizes from fragmenting memory, and pinned blocks at their size.

    Otherwise torch rounds these up to a power of two: streamed weights, tens of gigabytes of main
    memory, would take half as much again.
    """
    settings = "expandable_segments:True"
    if tuple(map(int, torch_version.split(".")[:2])) >= UNROUNDED_FROM:
        settings += ",pinned_max_round_threshold_mb:1"
    return settings


def _do_nothing() -> None:
    """Hear that the child is gone, where nobody wants to know."""
