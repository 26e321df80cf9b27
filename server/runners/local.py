"""A runner as a child process of the gateway, seen from the gateway."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata

import structlog

from pipelines.types import GenerationRequest, Stage
from server.children import Child, spawn
from server.runners.messages import (
    FROM_RUNNER,
    LENGTHS,
    Cancel,
    Done,
    Failed,
    FromRunner,
    Image,
    Load,
    LoadFailed,
    Progress,
    Ready,
    Run,
    to_runner,
)
from server.schemas import OutputFormat
from server.settings import ENV_PREFIX

log = structlog.get_logger(__name__)

KILL_AFTER_SECONDS = 5.0
HANG_FACTOR = 10
UNROUNDED_FROM = (2, 13)
"""The version of torch from which pinned memory can be had without rounding up."""
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
    IDLE = "idle"
    BUSY = "busy"


class RunnerDiedError(Exception):
    """The child ended while it was needed; the message says how."""


class RunnerLoadError(Exception):
    """The child could not load its pipeline; the message says why."""


class GenerationFailedError(Exception):
    """The runner is well, but this request came to nothing."""

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.detail)
        self.reason = failure.reason


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
    """Starts, feeds, cancels and stops one child process. One request at a time."""

    def __init__(self, load: Load, limits: Limits) -> None:
        self._load = load
        self._limits = limits
        self._usual_step_seconds = 0.0
        self._child: Child | None = None
        self.state = RunnerState.STOPPED
        self.problem: str | None = None
        self.description: str | None = None
        self.load_seconds = 0.0

    @property
    def pid(self) -> int | None:
        """The child's process id, or None when there is none."""
        return self._child.process.pid if self._child else None

    async def start(self) -> None:
        """Start the child and wait until its pipeline is loaded.

        Raises `RunnerLoadError` or `RunnerDiedError`; there is no child then.
        """
        self.state = RunnerState.LOADING
        try:
            await self._spawn()
            await self._send(self._load)
            message, _ = await self._receive(self._limits.load_seconds)
            if isinstance(message, LoadFailed):
                raise RunnerLoadError(message.reason)
            if not isinstance(message, Ready):
                raise RunnerDiedError(f"the runner answered {message.kind} to load")
        except (RunnerLoadError, RunnerDiedError) as error:
            self.problem = str(error)
            await self.stop()
            raise
        except asyncio.CancelledError:
            await self.stop()
            raise
        self.problem = None
        self.description = message.description
        self.load_seconds = message.load_seconds
        self.state = RunnerState.IDLE
        log.info(
            "runner ready",
            pid=self.pid,
            load_seconds=message.load_seconds,
            pipeline=message.description,
        )

    async def wait_died(self) -> None:
        """Return when the idle child ends; safe to cancel."""
        if self._child:
            await self._child.process.wait()

    async def run(
        self,
        request: GenerationRequest,
        output_format: OutputFormat,
        on_progress: Callable[[Progress], None],
    ) -> Generated:
        """Make the images of a request.

        Raises `GenerationFailedError` when only the request failed, `RunnerDiedError` when the
        child did: it is gone then, and `start` makes a new one.
        """
        self.state = RunnerState.BUSY
        try:
            await self._send(Run(request=request, output_format=output_format))
            generated = Generated()
            limit_seconds = self._limits.stage_seconds
            while generated.done is None:
                asked = asyncio.get_running_loop().time()
                message, payload = await self._receive(limit_seconds)
                if isinstance(message, Progress):
                    waited = asyncio.get_running_loop().time() - asked
                    limit_seconds = self._limit_after(message, waited)
                    on_progress(message)
                elif isinstance(message, Image):
                    generated.images[message.index] = (message, payload)
                elif isinstance(message, Done):
                    generated.done = message
                elif isinstance(message, Failed):
                    raise GenerationFailedError(message)
        except RunnerDiedError as error:
            self.problem = str(error)
            await self.stop()
            raise
        finally:
            if self.state is RunnerState.BUSY:
                self.state = RunnerState.IDLE
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
        """Ask the child to stop this request at its next step; nothing happens if it is over."""
        with contextlib.suppress(RunnerDiedError):
            await self._send(Cancel(request_id=request_id))

    async def stop(self) -> None:
        """End the child: it ends by itself when the socket closes, or else it is killed."""
        self.state = RunnerState.STOPPED
        if self._child:
            await self._child.end(KILL_AFTER_SECONDS)
        self._child = None

    async def _spawn(self) -> None:
        # Our own variables reach the child as its first message, and the API key not at all.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)
        }
        self._child = await spawn(
            "server.runners.runner_main",
            environment={
                **inherited,
                **RUNNER_ENVIRONMENT,
                "PYTORCH_ALLOC_CONF": _allocator_settings(metadata.version("torch")),
            },
        )

    async def _send(self, message: Load | Run | Cancel) -> None:
        if self._child is None:
            raise RunnerDiedError("the runner is not running")
        try:
            self._child.writer.write(to_runner(message))
            async with asyncio.timeout(self._limits.stage_seconds):
                await self._child.writer.drain()
        except TimeoutError:
            raise RunnerDiedError("the runner hung: it takes no orders") from None
        except OSError:
            raise RunnerDiedError(await self._describe_end()) from None

    async def _receive(self, limit_seconds: float) -> tuple[FromRunner, bytes]:
        if self._child is None:
            raise RunnerDiedError("the runner is not running")
        try:
            async with asyncio.timeout(limit_seconds):
                lengths = await self._child.reader.readexactly(LENGTHS.size)
                header_bytes, payload_bytes = LENGTHS.unpack(lengths)
                header = await self._child.reader.readexactly(header_bytes)
                payload = await self._child.reader.readexactly(payload_bytes)
        except TimeoutError:
            raise RunnerDiedError(f"the runner hung: silent for {limit_seconds:g} s") from None
        except (asyncio.IncompleteReadError, OSError):
            raise RunnerDiedError(await self._describe_end()) from None
        return FROM_RUNNER.validate_json(header), payload

    async def _describe_end(self) -> str:
        if self._child is None:
            return "the runner is not running"
        try:
            code = await asyncio.wait_for(self._child.process.wait(), KILL_AFTER_SECONDS)
        except TimeoutError:
            return "the runner hung up without ending"
        if code < 0:
            return f"the runner was killed by {signal.Signals(-code).name}"
        return f"the runner ended with code {code}"


def _allocator_settings(torch_version: str) -> str:
    """Keep reference images of many sizes from fragmenting memory, and pinned blocks at their size.

    Otherwise torch rounds these up to a power of two: streamed weights, tens of gigabytes of main
    memory, would take half as much again.
    """
    settings = "expandable_segments:True"
    if tuple(map(int, torch_version.split(".")[:2])) >= UNROUNDED_FROM:
        settings += ",pinned_max_round_threshold_mb:1"
    return settings
