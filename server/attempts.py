"""One attempt to make the images of a job: prepare it, run it, commit its outcome.

Every job that was claimed leaves with an outcome or goes back into the queue, whatever fails on
the way.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from pipelines.pictures import size_of
from pipelines.types import GenerationRequest, Stage
from server import jobs
from server.catalogue import find_endpoint
from server.clock import Clock
from server.errors import FalError, RequestError
from server.events import Events
from server.family.endpoint import Endpoint, Order
from server.files import FileStore
from server.inputs import InputPreparer
from server.jobs import IllegalTransitionError, Job, Outcome
from server.loras import refused_lora, unusable_lora
from server.metrics import Metrics
from server.prefetch import Prefetcher, Prepared
from server.results import (
    build_outcome,
    cancelled_error,
    delete_files,
    error_outcome,
    our_fault,
    partial_answer,
)
from server.runners.connection import RunnerAbsentError, RunnerDiedError
from server.runners.local import Generated, GenerationFailedError, LocalRunner
from server.runners.messages import Preview, Progress
from server.safety import refused_prompt, refused_reference
from server.settings import Settings
from server.store import Store, StoreUnavailableError

log = structlog.get_logger(__name__)

T = TypeVar("T")

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


class Attempt:
    """A claimed job on its way through a runner, until it has an outcome or waits again.

    `on_free` is called when it no longer `holds_device`: its images are drawn, or never will be.
    A death of the runner is no such moment.
    """

    def __init__(
        self,
        parts: Parts,
        prefetcher: Prefetcher,
        runner: LocalRunner,
        job: Job,
        on_free: Callable[["Attempt"], None],
    ) -> None:
        self._parts = parts
        self._prefetcher = prefetcher
        self._runner = runner
        self._on_free = on_free
        self._cancelled = False
        self.job = job
        self.holds_device = True
        self.storage_problem: str | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether it may have been the death of a runner: if so it must be alone with the next.

        Nobody else is charged with what it does then, and it with what nobody else does.
        """
        return self.job.runner_deaths > 0

    async def run(self, others: Collection[asyncio.Task[None]] = ()) -> None:
        """Do all of it; `others` are over before the runner is asked.

        Raises `RunnerDiedError`, or whatever else went wrong beside the making, when the job was
        given back.
        """
        parts, request_id = self._parts, self.job.request_id
        parts.metrics.started(self.job)
        parts.events.start_log(request_id)
        parts.events.log(request_id, f"Started on {self._runner.description}.")
        try:
            if others:
                await asyncio.wait(others)
            outcome = await self._make_outcome()
            self._free_device()
            outcome = replace(outcome, logs=parts.events.dump_log(request_id))
            await self._until_stored(lambda: self._commit(outcome))
        except RunnerAbsentError:
            await self._until_stored(lambda: self._give_back(charge_attempt=False))
            raise
        except RunnerDiedError as error:
            log.error("the attempt is lost", request_id=request_id, reason=str(error))
            parts.metrics.attempt_lost()
            await self._until_stored(lambda: self._give_back(runner_died=True))
            raise
        except asyncio.CancelledError:
            # Where even this fails the row stays IN_PROGRESS, and the next start puts it back.
            with contextlib.suppress(StoreUnavailableError):
                await self._give_back(charge_attempt=False)
            raise
        except Exception:
            # A fault of ours beside the making, charged so that it cannot come back for ever.
            await self._until_stored(self._give_back)
            raise
        finally:
            parts.events.end_log(request_id)
            parts.events.notify(request_id)

    async def cancel(self) -> None:
        """Ask for a stop before the next step; nothing happens when the images are drawn."""
        self._cancelled = True
        await self._runner.cancel(self.job.request_id)

    def _free_device(self) -> None:
        if self.holds_device:
            self.holds_device = False
            self._on_free(self)

    async def _make_outcome(self) -> Outcome:
        job = self.job
        keep_seconds = self._keep_seconds(job)
        if job.cancel_requested:
            # Its cancel was accepted while a server ran it that is dead by now.
            return error_outcome(cancelled_error(), keep_seconds)
        try:
            endpoint = find_endpoint(job.endpoint_id)
            order = await self._until_stored(lambda: self._parts.inputs.read(job))
            if order.sync_mode:
                keep_seconds = self._parts.settings.sync_result_seconds
            prepared = await self._take(order)
            order = prepared.apply_to(order)
            if order.needs_size:
                order = order.fit_to(*await asyncio.to_thread(size_of, prepared.references[0]))
            generated = await self._draw(endpoint, order, prepared.references)
            return await self._until_stored(
                lambda: self._build(endpoint, order, generated, keep_seconds)
            )
        except FalError as error:
            return error_outcome(error, keep_seconds)
        except RunnerDiedError:
            raise
        except Exception:
            # A fault of ours fails this job alone: left to escape, it would come back for ever.
            log.exception("the attempt failed", request_id=job.request_id)
            return error_outcome(our_fault(), keep_seconds)

    async def _take(self, order: Order) -> Prepared:
        """Return what the job had to wait for."""
        is_elsewhere = self._parts.settings.expansion_url is not None
        expands_elsewhere = order.settings.expand_prompt and is_elsewhere
        if order.image_urls or order.loras or expands_elsewhere:
            return await self._until_stored(lambda: self._prefetcher.take(self.job))
        return Prepared()

    async def _draw(
        self, endpoint: Endpoint, order: Order, references: tuple[Path, ...]
    ) -> Generated:
        if self._cancelled:
            raise cancelled_error()
        if self._runner.model is not self.job.model:
            raise RunnerAbsentError("the runner was lost, and has another model now")
        request = GenerationRequest(
            request_id=self.job.request_id,
            prompt=order.prompt,
            seed=order.seed,
            num_images=order.num_images,
            settings=order.settings,
            reference_images=references,
            previews=self._parts.events.wants_previews(self.job.request_id)
            and self._parts.inputs.may_preview(order),
        )
        loop = asyncio.get_running_loop()
        since = loop.time()

        def on_progress(progress: Progress) -> None:
            nonlocal since
            now = loop.time()
            self._parts.metrics.stage(progress.stage, now - since)
            since = now
            self._parts.events.log(progress.request_id, _describe(progress, order.num_images))

        previews: dict[int, tuple[Preview, bytes]] = {}

        def on_preview(preview: Preview, data: bytes) -> None:
            previews[preview.index] = (preview, data)
            partial = partial_answer(endpoint, order, previews, preview)
            self._parts.events.show(preview.request_id, partial)

        try:
            generated = await self._runner.run(
                request, order.output_format, on_progress, self._free_device, on_preview
            )
        except GenerationFailedError as error:
            raise _failure(error, endpoint, order) from error
        if generated.done:
            self._parts.metrics.applied(generated.done.applied, len(generated.images))
            if generated.done.prompt != order.prompt:
                self._parts.inputs.judge_prompt(generated.done.prompt)
        for image, _ in generated.images.values():
            self._parts.metrics.verdict(image.verdict)
        return generated

    async def _build(
        self, endpoint: Endpoint, order: Order, generated: Generated, keep_seconds: float
    ) -> Outcome:
        job = self.job
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

    async def _commit(self, outcome: Outcome) -> None:
        request_id = self.job.request_id
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

    async def _give_back(self, *, runner_died: bool = False, charge_attempt: bool = True) -> None:
        """Put the job, whose attempt was lost, back into the queue, or fail it for good."""
        request_id = self.job.request_id
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
                self.storage_problem = f"storage: {error}"
                log.error("cannot store, trying again", reason=str(error))
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
            else:
                self.storage_problem = None
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


def _failure(error: GenerationFailedError, endpoint: Endpoint, order: Order) -> FalError:
    """Translate what the runner says into fal's answers; its details stay in our own log."""
    if error.reason == "cancelled":
        return cancelled_error()
    if error.reason == "out_of_memory":
        return RequestError(503, "CUDA error: out of memory", "runner_server_error")
    if error.reason == "unavailable":
        return RequestError(503, str(error), "runner_server_error")
    if error.reason == "prompt_refused":
        log.info("prompt refused", criterion=str(error))
        return refused_prompt(order.prompt)
    if error.reason == "lora_refused" and endpoint.takes_loras:
        return refused_lora(error.index, order.loras[error.index].path, str(error))
    if error.reason == "lora_refused":
        return unusable_lora(order.loras[error.index].path)
    if error.reason == "reference_refused":
        return refused_reference(error.index, order.image_urls[error.index])
    return RequestError(500, "Internal Server Error", "runner_server_error")
