"""The queue at work: the workers, what they share, and what happens to jobs beside them.

A job that waits may be cancelled or miss its time to start; both end it without a runner.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from pipelines.types import Model
from server import jobs
from server.attempts import STORAGE_RETRY_SECONDS, Parts
from server.errors import FalError, UnknownRequestError
from server.jobs import IllegalTransitionError, Job, JobStatus, Need
from server.model_folders import FolderChecks
from server.offer import missing_model
from server.prefetch import Prefetcher
from server.results import (
    cancelled_error,
    error_outcome,
    missed_start_error,
    our_fault,
    unloadable_error,
)
from server.runners.local import LocalRunner
from server.runners.messages import Loading
from server.store import StoreUnavailableError
from server.worker import Worker

log = structlog.get_logger(__name__)

JOBS_AHEAD = 4
"""How many jobs, beside one for each runner, have images of ours decoded ahead of their turn."""

JOBS_FETCHING = 16
"""How many jobs have images fetched at a time: most of that is waiting for strangers."""

JOBS_FETCHING_LORAS = 4
"""How many jobs have LoRAs fetched at a time, each for minutes and of gigabytes at most."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """Whether a model is loaded, or will be when it is its turn; `reason` says why it failed."""

    word: Literal["loaded", "loading", "loadable", "failed"]
    reason: str | None = None


class Dispatcher:
    """Several workers on one queue."""

    def __init__(self, parts: Parts, runners: Sequence[LocalRunner]) -> None:
        self._parts = parts
        places = {
            Need.DECODING: len(runners) + JOBS_AHEAD,
            Need.FETCHING: JOBS_FETCHING,
            Need.FETCHING_LORAS: JOBS_FETCHING_LORAS,
        }
        self._prefetcher = Prefetcher(
            *(parts.store, parts.inputs, places, self._wake_workers, self._refuse),
            models=parts.settings.folders,
        )
        self.folders = FolderChecks(parts.settings.folders, parts.clock)
        self._workers = [
            Worker(parts, self._prefetcher, self.folders, runner, str(i), self._on_change)
            for i, runner in enumerate(runners)
        ]
        for worker in self._workers:
            worker.peers = [peer for peer in self._workers if peer is not worker]
        self._deadline_changed = asyncio.Event()
        self._models_changed = asyncio.Event()
        self._watchers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def problem(self) -> str | None:
        """Why no image can be made now, or None when one can."""
        if self._stopping:
            return "draining: the server is stopping"
        if self.held:
            return "held: the queue runs after SIGUSR1"
        if self._prefetcher.problem:
            return self._prefetcher.problem
        problems = [worker.problem for worker in self._workers]
        return None if None in problems else "; ".join(filter(None, problems))

    @property
    def descriptions(self) -> list[str]:
        """What the runners have loaded, in words for people."""
        return [worker.runner.description or "" for worker in self._workers]

    @property
    def loading(self) -> list[Loading | None]:
        """How far each runner is with loading; None for one that does not load."""
        return [worker.runner.loading for worker in self._workers]

    @property
    def model_states(self) -> dict[Model, ModelState]:
        """How it stands with each model that this server has."""
        return {model: self._state_of(model) for model in self._parts.settings.folders}

    @property
    def held(self) -> bool:
        """Whether the queue stands still on the operator's word."""
        return any(worker.held for worker in self._workers)

    def start(self, *, held: bool = False) -> None:
        """Begin to work; returns at once, before any pipeline is loaded."""
        self._prefetcher.held = held
        self._prefetcher.start()
        for worker in self._workers:
            worker.held = held
            worker.start()
        self._watchers = [
            asyncio.create_task(self._watch_deadlines(), name="deadlines"),
            asyncio.create_task(self._watch_models(), name="models"),
        ]

    def toggle_hold(self) -> None:
        """Let the queue stand still, or run again; what runs is finished either way."""
        held = not self.held
        log.info("the queue is held" if held else "the queue runs")
        self._prefetcher.held = held
        self._prefetcher.wake()
        for worker in self._workers:
            worker.held = held
        self._wake_workers()

    def on_accepted(self, job: Job) -> None:
        """Wake whoever has to do with a new job."""
        if job.needs is Need.NOTHING:
            self._wake_workers()
        else:
            self._prefetcher.wake()
        if job.start_by is not None:
            self._deadline_changed.set()
        if self._is_given_up(job.model):
            self._models_changed.set()

    async def stop(self, drain_seconds: float) -> None:
        """Claim nothing more, give running jobs `drain_seconds`, then put them back."""
        self._stopping = True
        for watcher in self._watchers:
            watcher.cancel()
        await self._prefetcher.stop()
        await asyncio.gather(*(worker.stop(drain_seconds) for worker in self._workers))
        await self._prefetcher.clear()

    async def cancel(self, request_id: str) -> Job:
        """Cancel a job: at once while it is queued, at its next step while it runs.

        Raises `UnknownRequestError`, or `IllegalTransitionError` when it is over already.
        """
        job = await self._end(request_id, jobs.cancel, cancelled_error)
        if job.status is JobStatus.IN_PROGRESS:
            for worker in self._workers:
                await worker.cancel(request_id)
        return job

    async def cancel_if_queued(self, request_id: str) -> None:
        """Cancel a job that has not begun, and leave any other alone."""
        with contextlib.suppress(IllegalTransitionError, UnknownRequestError):
            await self._end(request_id, jobs.end_in_queue, cancelled_error)

    async def _watch_deadlines(self) -> None:
        """Answer 504 for every job that is not begun in its caller's time, when it is over."""
        while True:
            try:
                await self._expire_starts()
                self._deadline_changed.clear()
                next_start_by = await self._parts.store.next_start_by()
            except StoreUnavailableError as error:
                log.error("the storage refuses", reason=error.body["detail"])
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
                continue
            seconds = None if next_start_by is None else next_start_by - self._parts.clock()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._deadline_changed.wait(), None if seconds is None else max(0.0, seconds)
                )

    async def _expire_starts(self) -> None:
        while missed := await self._parts.store.missed_starts(self._parts.clock()):
            for request_id in missed:
                with contextlib.suppress(IllegalTransitionError, UnknownRequestError):
                    await self._end(request_id, jobs.end_in_queue, missed_start_error)

    async def _watch_models(self) -> None:
        """End what waits for a model that cannot be had, whenever that may have changed."""
        while True:
            self._models_changed.clear()
            try:
                for model in Model:
                    if make_error := self._hopelessness(model):
                        await self._end_all(model, make_error)
            except StoreUnavailableError as error:
                log.error("the storage refuses", reason=error.body["detail"])
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
                continue
            await self._models_changed.wait()

    def _hopelessness(self, model: Model) -> Callable[[], FalError] | None:
        """Return what makes the answer for whoever waits for a model in vain; None if not so."""
        folders = self._parts.settings.folders
        if model not in folders:
            return lambda: missing_model(model, folders)
        return (lambda: unloadable_error(model)) if self._is_given_up(model) else None

    def _is_given_up(self, model: Model) -> bool:
        """Say whether no runner can load a model, though one of them is well.

        Where none is, nothing is to be made anyway, and what waits is kept until that is mended.
        """
        now = self._parts.clock()
        able = [worker for worker in self._workers if model in worker.runner.models]
        return any(worker.loaded for worker in self._workers) and all(
            worker.failures.has_given_up(model, now) for worker in able
        )

    async def _end_all(self, model: Model, make_error: Callable[[], FalError]) -> None:
        while waiting := await self._parts.store.queued_of_model(model):
            log.error("requests are ended for want of their model", model=model, count=len(waiting))
            for request_id in waiting:
                with contextlib.suppress(IllegalTransitionError, UnknownRequestError):
                    await self._end(request_id, jobs.end_in_queue, make_error)

    def _state_of(self, model: Model) -> ModelState:
        able = [worker for worker in self._workers if model in worker.runner.models]
        if any(worker.loaded is model for worker in able):
            return ModelState("loaded")
        if any(worker.loading is model for worker in able):
            return ModelState("loading")
        reasons = [worker.failures.reason(model) for worker in able]
        return ModelState("loadable") if None in reasons else ModelState("failed", reasons[0])

    def _on_change(self) -> None:
        self._models_changed.set()
        self._wake_workers()

    async def _end(
        self,
        request_id: str,
        transition: Callable[[Job, jobs.Outcome, float], Job],
        make_error: Callable[[], FalError],
        *,
        sync_mode: bool = False,
    ) -> Job:
        settings = self._parts.settings
        error = make_error()
        now = self._parts.clock()

        def end(job: Job) -> Job:
            short = sync_mode or not job.keep_payload
            keep = settings.sync_result_seconds if short else settings.result_seconds
            return transition(job, error_outcome(error, keep), now)

        job = await self._parts.store.change(request_id, end)
        if job is None:
            raise UnknownRequestError
        if job.outcome:
            self._prefetcher.drop(request_id)
            self._parts.on_completed(job)
        self._parts.events.notify(request_id)
        return job

    async def _refuse(self, job: Job, error: FalError | None) -> None:
        """End a queued job whose images cannot be had; it needs no runner to hear that."""
        sync_mode = False
        with contextlib.suppress(FalError):
            sync_mode = (await self._parts.inputs.read(job)).sync_mode
        answer = error or our_fault()
        with contextlib.suppress(IllegalTransitionError, UnknownRequestError):
            await self._end(job.request_id, jobs.end_in_queue, lambda: answer, sync_mode=sync_mode)
        self._prefetcher.drop(job.request_id)

    def _wake_workers(self) -> None:
        for worker in self._workers:
            worker.wake()
