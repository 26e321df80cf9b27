"""One runner at work: claim a job, prepare it, run it, commit its outcome, again.

Every job that is claimed leaves with an outcome or goes back into the queue, whatever fails on
the way.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from pipelines.types import GenerationRequest, Stage
from server import jobs
from server.catalogue import Endpoint, Order, find_endpoint
from server.clock import Clock
from server.errors import FalError, RequestError
from server.events import Events
from server.files import FileStore
from server.inputs import InputPreparer
from server.jobs import IllegalTransitionError, Job, Outcome
from server.metrics import Metrics
from server.prefetch import Prefetcher
from server.results import build_outcome, cancelled_error, delete_files, error_outcome
from server.runners.local import (
    Generated,
    GenerationFailedError,
    LocalRunner,
    RunnerDiedError,
    RunnerLoadError,
    RunnerState,
)
from server.runners.messages import Progress
from server.settings import Settings
from server.store import Store, StoreUnavailableError

log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRST_RESPAWN_SECONDS = 0.5
LONGEST_RESPAWN_SECONDS = 300.0
STORAGE_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every worker shares. `on_completed` hears of each job that got its outcome."""

    settings: Settings
    store: Store
    files: FileStore
    inputs: InputPreparer
    events: Events
    metrics: Metrics
    clock: Clock
    on_completed: Callable[[Job], None]


class Worker:
    """Keeps one runner alive and feeds it from the queue."""

    def __init__(
        self, parts: Parts, prefetcher: Prefetcher, runner: LocalRunner, name: str
    ) -> None:
        self._parts = parts
        self._prefetcher = prefetcher
        self._name = name
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._storage_problem: str | None = None
        self.runner = runner
        self.held = False
        self.request_id: str | None = None

    @property
    def problem(self) -> str | None:
        """Why this runner can make no image now, or None when it can."""
        if self._storage_problem:
            return self._storage_problem
        if self.runner.state in (RunnerState.IDLE, RunnerState.BUSY):
            return None
        return self.runner.problem or f"the runner is {self.runner.state}"

    def start(self) -> None:
        """Begin to work; returns at once, before the pipeline is loaded."""
        self._parts.metrics.runner(self._name, up=False)
        self._task = asyncio.create_task(self._work(), name=f"worker {self._name}")

    def wake(self) -> None:
        """Tell the worker to look at the queue."""
        self._wake.set()

    async def stop(self, drain_seconds: float) -> None:
        """Claim nothing more, give the running job `drain_seconds`, then put it back."""
        self._stopping = True
        self._wake.set()
        if self._task:
            # A runner that only loads holds no image, and may well load for minutes.
            loading = self.runner.state is RunnerState.LOADING
            timeout = 0 if loading else drain_seconds
            done, _ = await asyncio.wait({self._task}, timeout=timeout)
            if not done:
                self._task.cancel()
                await asyncio.wait({self._task})
        await self.runner.stop()
        self._parts.metrics.runner(self._name, up=False)

    async def _work(self) -> None:
        pause = FIRST_RESPAWN_SECONDS
        while not self._stopping:
            try:
                await self._work_once()
            except StoreUnavailableError as error:
                log.error("the storage refuses", reason=error.body["detail"])
                await self._pause(STORAGE_RETRY_SECONDS)
                continue
            except (RunnerLoadError, RunnerDiedError) as error:
                self._parts.metrics.runner(self._name, up=False)
                log.error("no runner", reason=str(error), retry_seconds=pause)
            except Exception:
                log.exception("the worker stumbled", retry_seconds=pause)
            else:
                pause = FIRST_RESPAWN_SECONDS
                continue
            await self._pause(pause)
            pause = min(pause * 2, LONGEST_RESPAWN_SECONDS)

    async def _work_once(self) -> None:
        if self.runner.state is RunnerState.STOPPED:
            await self.runner.start()
            self._parts.metrics.runner(self._name, up=True, load_seconds=self.runner.load_seconds)
        self._wake.clear()
        job = None if self.held else await self._claim()
        if job is None:
            await self._wait_for_work()
            return
        self.request_id = job.request_id
        try:
            await self._attempt(job)
        finally:
            self.request_id = None

    async def _claim(self) -> Job | None:
        return await self._parts.store.claim(self._parts.clock(), self._prefetcher.ready())

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past the moment the server begins to stop."""
        deadline = asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not self._stopping:
                    self._wake.clear()
                    await self._wake.wait()

    async def _wait_for_work(self) -> None:
        """Return when there may be a job, the server stops, or the idle runner ended."""
        work = asyncio.create_task(self._wake.wait())
        died = asyncio.create_task(self.runner.wait_died())
        try:
            await asyncio.wait({work, died}, return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                await self.runner.stop()
                raise RunnerDiedError("the idle runner ended")
        finally:
            work.cancel()
            died.cancel()

    async def _attempt(self, job: Job) -> None:
        parts, request_id = self._parts, job.request_id
        parts.metrics.started(job)
        parts.events.start_log(request_id)
        parts.events.log(request_id, f"Started on {self.runner.description}.")
        try:
            outcome = await self._make_outcome(job)
            outcome = replace(outcome, logs=parts.events.dump_log(request_id))
            await self._until_stored(lambda: self._commit(request_id, outcome))
        except RunnerDiedError as error:
            log.error("the runner died", request_id=request_id, reason=str(error))
            parts.metrics.attempt_lost()
            await self._until_stored(
                lambda: self._give_back(request_id, runner_died=True, charge_attempt=True)
            )
            raise
        except asyncio.CancelledError:
            # Where even this fails the row stays IN_PROGRESS, and the next start puts it back.
            with contextlib.suppress(StoreUnavailableError):
                await self._give_back(request_id, runner_died=False, charge_attempt=False)
            raise
        except Exception:
            # A fault of ours beside the making, charged so that it cannot come back for ever.
            await self._until_stored(
                lambda: self._give_back(request_id, runner_died=False, charge_attempt=True)
            )
            raise
        finally:
            parts.events.end_log(request_id)
            parts.events.notify(request_id)

    async def _make_outcome(self, job: Job) -> Outcome:
        keep_seconds = self._keep_seconds(job)
        if job.cancel_requested:
            # Its cancel was accepted while a server ran it that is dead by now.
            return error_outcome(cancelled_error(), keep_seconds)
        try:
            endpoint = find_endpoint(job.endpoint_id)
            order = await self._until_stored(lambda: self._parts.inputs.read(job))
            if order.sync_mode:
                keep_seconds = self._parts.settings.sync_result_seconds
            generated = await self._run(job, order)
            return await self._until_stored(
                lambda: self._build(job, endpoint, order, generated, keep_seconds)
            )
        except FalError as error:
            return error_outcome(error, keep_seconds)
        except GenerationFailedError as error:
            return error_outcome(_failure(error), keep_seconds)
        except RunnerDiedError:
            raise
        except Exception:
            # A fault of ours fails this job alone: left to escape, it would come back for ever.
            log.exception("the attempt failed", request_id=job.request_id)
            return error_outcome(our_fault(), keep_seconds)

    async def _run(self, job: Job, order: Order) -> Generated:
        references: tuple[Path, ...] = ()
        if order.image_urls:
            references = await self._until_stored(lambda: self._prefetcher.take(job))
        request = GenerationRequest(
            request_id=job.request_id,
            prompt=order.prompt,
            seed=order.seed,
            num_images=order.num_images,
            settings=order.settings,
            reference_images=references,
        )
        loop = asyncio.get_running_loop()
        since = loop.time()

        def on_progress(progress: Progress) -> None:
            nonlocal since
            now = loop.time()
            self._parts.metrics.stage(progress.stage, now - since)
            since = now
            self._parts.events.log(progress.request_id, _describe(progress, order.num_images))

        generated = await self.runner.run(request, order.output_format, on_progress)
        if generated.done:
            self._parts.metrics.applied(generated.done.applied, len(generated.images))
        return generated

    async def _build(
        self, job: Job, endpoint: Endpoint, order: Order, generated: Generated, keep_seconds: float
    ) -> Outcome:
        file_seconds = keep_seconds if job.file_seconds is None else job.file_seconds
        if not job.keep_payload:
            file_seconds = keep_seconds
        forever = math.isinf(file_seconds)
        return await asyncio.to_thread(
            build_outcome,
            endpoint,
            order,
            generated,
            self._parts.files,
            job=job,
            keep_seconds=keep_seconds,
            files_expire_at=None if forever else self._parts.clock() + file_seconds,
        )

    async def _commit(self, request_id: str, outcome: Outcome) -> None:
        now = self._parts.clock()
        try:
            job = await self._parts.store.change(
                request_id, lambda job: jobs.complete(job, outcome, now)
            )
        except IllegalTransitionError:
            # Somebody else's outcome was first, and the first one counts.
            delete_files(outcome.files, self._parts.files)
            job = None
        self._prefetcher.drop(request_id)
        if job:
            self._parts.on_completed(job)

    async def _give_back(self, request_id: str, *, runner_died: bool, charge_attempt: bool) -> None:
        """Put a job whose attempt was lost back into the queue, or fail it for good."""
        now = self._parts.clock()

        def transition(job: Job) -> Job:
            keep_seconds = self._keep_seconds(job)
            if job.cancel_requested:
                return jobs.complete(job, error_outcome(cancelled_error(), keep_seconds), now)
            if not charge_attempt or jobs.may_retry(job, runner_died=runner_died):
                return jobs.requeue(job, runner_died=runner_died, charge_attempt=charge_attempt)
            error = (
                RequestError(503, "The runner was lost", "runner_disconnected")
                if runner_died
                else our_fault()
            )
            return jobs.complete(job, error_outcome(error, keep_seconds), now)

        with contextlib.suppress(IllegalTransitionError):
            job = await self._parts.store.change(request_id, transition)
            if job and job.outcome:
                self._prefetcher.drop(request_id)
                self._parts.on_completed(job)
            else:
                self._prefetcher.give_back(request_id)

    async def _until_stored(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what stores a finished image, again until the storage takes it.

        The image took seconds of a GPU and is in memory; a full disk or a locked database is
        an operator's matter of minutes.
        """
        while True:
            try:
                result = await work()
            except (StoreUnavailableError, OSError) as error:
                self._storage_problem = f"storage: {error}"
                log.error("cannot store, trying again", reason=str(error))
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
            else:
                self._storage_problem = None
                return result

    def _keep_seconds(self, job: Job) -> float:
        settings = self._parts.settings
        return settings.result_seconds if job.keep_payload else settings.sync_result_seconds


def _describe(progress: Progress, num_images: int) -> str:
    image = f"Image {progress.image_index + 1} of {num_images}"
    if progress.stage is Stage.ENCODE:
        return "Prompt and reference images encoded."
    if progress.stage is Stage.DENOISE:
        return f"{image}: step {progress.step} of {progress.steps}."
    return f"{image}: decoded."


def our_fault() -> RequestError:
    """Make the answer for what only our log explains."""
    return RequestError(500, "Internal Server Error", "internal_error")


def _failure(error: GenerationFailedError) -> RequestError:
    """Translate what the runner says into fal's answers; its details stay in our own log."""
    if error.reason == "cancelled":
        return cancelled_error()
    if error.reason == "out_of_memory":
        return RequestError(503, "CUDA error: out of memory", "runner_server_error")
    if error.reason == "unavailable":
        return RequestError(503, str(error), "runner_server_error")
    return RequestError(500, "Internal Server Error", "runner_server_error")
