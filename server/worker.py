"""One runner at work: jobs are claimed as its device becomes free, each an attempt of its own.

While the images of one request are encoded and stored the next one is drawn, and no more than
that: a worker never has more than two jobs, and so no more of their images in memory.
"""

import asyncio
import contextlib

import structlog

from server.attempts import STORAGE_RETRY_SECONDS, Attempt, Parts
from server.jobs import Job
from server.prefetch import Prefetcher
from server.runners.connection import RunnerDiedError
from server.runners.local import LocalRunner, RunnerLoadError, RunnerState
from server.store import StoreUnavailableError

log = structlog.get_logger(__name__)

MOST_ATTEMPTS = 2
FIRST_RESPAWN_SECONDS = 0.5
LONGEST_RESPAWN_SECONDS = 300.0


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
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._trouble: BaseException | None = None
        self._pause_seconds = FIRST_RESPAWN_SECONDS
        self._was_ready = False
        self.runner = runner
        self.runner.on_end = self.wake
        self.held = False

    @property
    def problem(self) -> str | None:
        """Why this runner can make no image now, or None when it can."""
        problems = [attempt.storage_problem for attempt in self._attempts.values()]
        return next(filter(None, problems), None) or self.runner.problem

    def start(self) -> None:
        """Begin to work; returns at once, before the pipeline is loaded."""
        self._parts.metrics.runner(self._name, up=False)
        self._task = asyncio.create_task(self._work(), name=f"worker {self._name}")

    def wake(self) -> None:
        """Tell the worker to look at the queue, its runner and its attempts."""
        self._wake.set()

    async def cancel(self, request_id: str) -> None:
        """Ask the runner to stop this request, if it is one of ours."""
        for attempt in list(self._attempts.values()):
            if attempt.job.request_id == request_id:
                await attempt.cancel()

    async def stop(self, drain_seconds: float) -> None:
        """Claim nothing more, give the running jobs `drain_seconds`, then put them back."""
        self._stopping = True
        self._wake.set()
        if self._task:
            # A runner that only loads holds no image, and may well load for minutes.
            is_empty = self.runner.state is RunnerState.LOADING and not self._attempts
            done, _ = await asyncio.wait({self._task}, timeout=0 if is_empty else drain_seconds)
            if not done:
                self._task.cancel()
                await asyncio.wait({self._task})
        await self.runner.stop()
        self._parts.metrics.runner(self._name, up=False)

    async def _work(self) -> None:
        """Work until the server stops, and then until the attempts are over."""
        try:
            while not self._stopping:
                await self._work_or_pause()
            await self._wait_attempts()
        except asyncio.CancelledError:
            for task in self._attempts:
                task.cancel()
            await self._wait_attempts()
            raise

    async def _work_or_pause(self) -> None:
        try:
            await self._work_once()
        except StoreUnavailableError as error:
            log.error("the storage refuses", reason=error.body["detail"])
            await self._pause(STORAGE_RETRY_SECONDS)
            return
        except (RunnerLoadError, RunnerDiedError) as error:
            self._parts.metrics.runner(self._name, up=False)
            log.error("no runner", reason=str(error), retry_seconds=self._pause_seconds)
        except Exception:
            log.exception("the worker stumbled", retry_seconds=self._pause_seconds)
        else:
            return
        await self._pause(self._pause_seconds)
        self._pause_seconds = min(self._pause_seconds * 2, LONGEST_RESPAWN_SECONDS)

    async def _work_once(self) -> None:
        """Look at everything once, and do what there is to do; or wait until something changes."""
        self._wake.clear()
        if self._trouble:
            trouble, self._trouble = self._trouble, None
            raise trouble
        if self.runner.state is RunnerState.STOPPED:
            await self._start_runner()
        job = await self._claim() if self._may_claim else None
        if job:
            self._begin(job)
            return
        await self._wake.wait()
        if not self._attempts and self.runner.state is RunnerState.READY:
            self._pause_seconds = FIRST_RESPAWN_SECONDS

    async def _start_runner(self) -> None:
        if self._was_ready:
            self._was_ready = False
            await self.runner.stop()
            error = RunnerDiedError(self.runner.problem)
            log.error("the runner died", reason=str(error))
            raise error
        await self.runner.start()
        self._was_ready = True
        self._parts.metrics.runner(self._name, up=True, load_seconds=self.runner.load_seconds)

    @property
    def _may_claim(self) -> bool:
        """Whether a device is there and free, and what was drawn last does not hold the next up."""
        attempts = self._attempts.values()
        return (
            not (self.held or self._stopping)
            and self.runner.state is RunnerState.READY
            and len(attempts) < MOST_ATTEMPTS
            and not any(a.holds_device or a.is_suspect or a.storage_problem for a in attempts)
        )

    async def _claim(self) -> Job | None:
        return await self._parts.store.claim(self._parts.clock(), self._prefetcher.ready())

    def _begin(self, job: Job) -> None:
        attempt = Attempt(self._parts, self._prefetcher, self.runner, job, self._note_free)
        others = tuple(self._attempts) if attempt.is_suspect else ()
        task = asyncio.create_task(attempt.run(others), name=f"attempt {job.request_id}")
        self._attempts[task] = attempt
        task.add_done_callback(self._end)

    def _note_free(self, attempt: Attempt) -> None:
        if not attempt.is_suspect:
            self._pause_seconds = FIRST_RESPAWN_SECONDS
        self.wake()

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._attempts[task]
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, RunnerDiedError):
            self._trouble = error
        self.wake()

    async def _wait_attempts(self) -> None:
        while self._attempts:
            await asyncio.wait(set(self._attempts))

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past the moment the server begins to stop."""
        deadline = asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not self._stopping:
                    self._wake.clear()
                    await self._wake.wait()
