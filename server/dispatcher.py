"""From the queue to the runner and back: claim, prepare, run, commit.

One worker task for the runner. Every job it claims leaves it with an outcome or back in the
queue, whatever fails on the way.
"""

import asyncio
import contextlib
import json
import time
from dataclasses import replace

import structlog

from pipelines.types import GenerationRequest, Stage
from server import jobs
from server.catalogue import Order, find_endpoint
from server.errors import FalError, RequestError, UnknownRequestError
from server.events import Events
from server.files import FileStore
from server.inputs import InputPreparer
from server.jobs import IllegalTransitionError, Job, JobStatus, Outcome
from server.results import build_outcome, cancelled_error, delete_files, error_outcome
from server.runners.local import (
    GenerationFailedError,
    LocalRunner,
    RunnerDiedError,
    RunnerLoadError,
    RunnerState,
)
from server.runners.messages import Progress
from server.settings import Settings
from server.store import Store

log = structlog.get_logger(__name__)

FIRST_RESPAWN_SECONDS = 0.5
LONGEST_RESPAWN_SECONDS = 300.0


class Dispatcher:
    """Feeds one runner from the queue and keeps it alive."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        files: FileStore,
        inputs: InputPreparer,
        events: Events,
        runner: LocalRunner,
    ) -> None:
        self._settings = settings
        self._store = store
        self._files = files
        self._inputs = inputs
        self._events = events
        self._runner = runner
        self._wake = asyncio.Event()
        self._draining = False
        self._worker: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str | None:
        """Why no image can be made now, or None when one can."""
        if self._draining:
            return "draining: the server is stopping"
        if self._runner.state in (RunnerState.IDLE, RunnerState.BUSY):
            return None
        return self._runner.problem or f"the runner is {self._runner.state}"

    @property
    def description(self) -> str | None:
        """What the runner has loaded, in words for people."""
        return self._runner.description

    def start(self) -> None:
        """Begin to work; returns at once, before the pipeline is loaded."""
        self._worker = asyncio.create_task(self._work(), name="dispatcher")

    def wake(self) -> None:
        """Tell the worker that a job was accepted."""
        self._wake.set()

    async def stop(self, drain_seconds: float) -> None:
        """Claim nothing more, give the running job `drain_seconds`, then put it back."""
        self._draining = True
        self._wake.set()
        if self._worker:
            done, _ = await asyncio.wait({self._worker}, timeout=drain_seconds)
            if not done:
                self._worker.cancel()
                await asyncio.wait({self._worker})
        await self._runner.stop()

    async def cancel(self, request_id: str) -> Job:
        """Cancel a job: at once while it is queued, at its next step while it runs.

        Raises `UnknownRequestError`, or `IllegalTransitionError` when it is over already.
        """
        outcome = error_outcome(cancelled_error(), self._settings.result_seconds)
        now = time.time()
        job = await self._store.change(request_id, lambda job: jobs.cancel(job, outcome, now))
        if job is None:
            raise UnknownRequestError
        if job.status is JobStatus.IN_PROGRESS:
            await self._runner.cancel(request_id)
        self._events.notify(request_id)
        return job

    async def _work(self) -> None:
        pause = FIRST_RESPAWN_SECONDS
        while not self._draining:
            try:
                await self._work_once()
            except (RunnerLoadError, RunnerDiedError) as error:
                log.error("no runner", reason=str(error), retry_seconds=pause)
            except Exception:
                log.exception("the dispatcher stumbled", retry_seconds=pause)
            else:
                pause = FIRST_RESPAWN_SECONDS
                continue
            await self._wait(pause)
            pause = min(pause * 2, LONGEST_RESPAWN_SECONDS)

    async def _work_once(self) -> None:
        if self._runner.state is RunnerState.STOPPED:
            await self._runner.start()
        self._wake.clear()
        job = await self._store.claim(time.time())
        if job is None:
            await self._wait_for_work()
        else:
            await self._attempt(job)

    async def _wait(self, seconds: float) -> None:
        """Wait, but not past the moment the server begins to stop."""
        deadline = time.monotonic() + seconds
        while not self._draining and (left := deadline - time.monotonic()) > 0:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)

    async def _wait_for_work(self) -> None:
        """Return when a job was accepted, the server stops, or the idle runner ended."""
        work = asyncio.create_task(self._wake.wait())
        died = asyncio.create_task(self._runner.wait_died())
        try:
            await asyncio.wait({work, died}, return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                log.error("the idle runner ended")
                await self._runner.stop()
        finally:
            work.cancel()
            died.cancel()

    async def _attempt(self, job: Job) -> None:
        request_id = job.request_id
        self._events.start_log(request_id)
        self._events.log(request_id, f"Started on {self._runner.description}.")
        try:
            outcome = await self._make_outcome(job)
        except RunnerDiedError as error:
            log.error("the runner died", request_id=request_id, reason=str(error))
            await self._give_back(request_id, runner_died=True)
        except asyncio.CancelledError:
            await self._give_back(request_id, runner_died=False)
            raise
        else:
            await self._commit(request_id, outcome)
        finally:
            self._inputs.release(request_id)
            self._events.end_log(request_id)
            self._events.notify(request_id)

    async def _make_outcome(self, job: Job) -> Outcome:
        keep_seconds = self._settings.result_seconds
        try:
            endpoint = find_endpoint(job.endpoint_id)
            order = endpoint.parse(json.loads(job.input))
            if order.sync_mode:
                keep_seconds = self._settings.sync_result_seconds
            references = await self._inputs.prepare(job.request_id, order.image_urls)
            request = GenerationRequest(
                request_id=job.request_id,
                prompt=order.prompt,
                seed=order.seed,
                num_images=order.num_images,
                settings=order.settings,
                reference_images=references,
            )
            generated = await self._runner.run(
                request, order.output_format, lambda progress: self._on_progress(order, progress)
            )
            return await asyncio.to_thread(
                build_outcome,
                endpoint,
                order,
                generated,
                self._files,
                origin=job.origin,
                keep_seconds=keep_seconds,
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
            fault = RequestError(500, "Internal Server Error", "internal_error")
            return error_outcome(fault, keep_seconds)

    async def _commit(self, request_id: str, outcome: Outcome) -> None:
        outcome = replace(outcome, logs=self._events.end_log(request_id))
        now = time.time()
        try:
            await self._store.change(request_id, lambda job: jobs.complete(job, outcome, now))
        except IllegalTransitionError:
            # Somebody else's outcome was first, and the first one counts.
            delete_files(outcome.files, self._files)
        log.info(
            "completed",
            request_id=request_id,
            http_status=outcome.http_status,
            inference_seconds=outcome.inference_seconds,
        )

    async def _give_back(self, request_id: str, *, runner_died: bool) -> None:
        """Put a job whose attempt was lost back into the queue, or fail it for good."""
        keep_seconds = self._settings.result_seconds
        now = time.time()

        def transition(job: Job) -> Job:
            if job.cancel_requested:
                return jobs.complete(job, error_outcome(cancelled_error(), keep_seconds), now)
            if jobs.may_retry(job, runner_died=runner_died):
                return jobs.requeue(job, runner_died=runner_died, charge_attempt=runner_died)
            lost = RequestError(503, "The runner was lost", "runner_disconnected")
            return jobs.complete(job, error_outcome(lost, keep_seconds), now)

        await self._store.change(request_id, transition)

    def _on_progress(self, order: Order, progress: Progress) -> None:
        image = f"Image {progress.image_index + 1} of {order.num_images}"
        if progress.stage is Stage.ENCODE:
            message = "Prompt and reference images encoded."
        elif progress.stage is Stage.DENOISE:
            message = f"{image}: step {progress.step} of {progress.steps}."
        else:
            message = f"{image}: decoded."
        self._events.log(progress.request_id, message)


def _failure(error: GenerationFailedError) -> RequestError:
    """Translate what the runner says into fal's answers; its details stay in our own log."""
    if error.reason == "cancelled":
        return cancelled_error()
    if error.reason == "out_of_memory":
        return RequestError(503, "CUDA error: out of memory", "runner_server_error")
    return RequestError(500, "Internal Server Error", "runner_server_error")
