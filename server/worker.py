"""One runner at work: jobs are claimed as its device becomes free, each an attempt of its own.

A runner that may load several models is given another one when it is that one's turn.

While the images of one request are encoded and stored the next one is drawn, and no more than
that: a worker never has more than two jobs, and so no more of their images in memory.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import structlog

from pipelines.errors import ModelNotFoundError
from pipelines.types import Model
from server.attempts import STORAGE_RETRY_SECONDS, Attempt, Parts
from server.jobs import Job
from server.model_folders import FolderChecks
from server.prefetch import Prefetcher
from server.runners.connection import RunnerDiedError
from server.runners.local import LocalRunner, RunnerLoadError, RunnerState
from server.store import StoreUnavailableError
from server.turns import LoadFailures, Peers, Turn, Turns

log = structlog.get_logger(__name__)

MOST_ATTEMPTS = 2
FIRST_RESPAWN_SECONDS = 0.5
LONGEST_RESPAWN_SECONDS = 300.0


class Worker:
    """Keeps one runner alive and feeds it from the queue.

    `peers` are the other workers; `on_change` is called when a model was loaded, or was not, and
    when a request was given back that any of them may take.
    """

    def __init__(
        self,
        parts: Parts,
        prefetcher: Prefetcher,
        folders: FolderChecks,
        runner: LocalRunner,
        name: str,
        on_change: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._folders = folders
        self._prefetcher = prefetcher
        self._name = name
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._trouble: BaseException | None = None
        self._pause_seconds = FIRST_RESPAWN_SECONDS
        self._was_ready = False
        self._is_switching = False
        self._on_change = on_change
        self._turns = Turns(parts.settings.overtake_jobs, parts.settings.overtake_seconds)
        self.loading: Model | None = None
        self.failures = LoadFailures()
        self.peers: Sequence[Worker] = ()
        self.runner = runner
        self.runner.on_end = self.wake
        self.held = False

    @property
    def problem(self) -> str | None:
        """Why this runner can make no image, or None when it can, if only with another model."""
        problems = [attempt.storage_problem for attempt in self._attempts.values()]
        runner_problem = None if self._is_switching else self.runner.problem
        return next(filter(None, problems), None) or runner_problem

    @property
    def loaded(self) -> Model | None:
        """The model that is ready to make images, or None."""
        return self.runner.model if self.runner.state is RunnerState.READY else None

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
        loaded = self.loaded
        if loaded is None:
            await self._note_death()
        turn = await self._find_turn() if loaded is None or self._may_claim else Turn()
        if self.loaded is not loaded:
            return
        if loaded and not self._may_claim:  # nor may it be in the meantime
            turn = Turn()
        if turn.model and turn.model is loaded:
            job = await self._claim(turn.model)
            if job:
                self._begin(job)
            if job or len(self.runner.models) > 1:
                return
        elif turn.model and (loaded is None or not self._attempts):
            await self._load(turn.model)
            return
        await self._wait_wake(turn.look_again_at)
        if not self._attempts and self.loaded:
            self._pause_seconds = FIRST_RESPAWN_SECONDS

    async def _note_death(self) -> None:
        """Raise `RunnerDiedError` once for each runner that was ready and is gone."""
        if self._was_ready:
            self._was_ready = False
            await self.runner.stop()
            error = RunnerDiedError(self.runner.problem)
            log.error("the runner died", reason=str(error))
            raise error

    async def _find_turn(self) -> Turn:
        """Return which model is to be served next, of those that may be loaded now."""
        models, loaded = self.runner.models, self.loaded
        if len(models) == 1:
            return Turn(models[0])
        heads = await self._parts.store.first_queued(models, self._prefetcher.ready())
        now = self._parts.clock()
        open_models = [m for m in models if m is loaded or self.failures.may_try(m, now)]
        open_heads = [job for job in heads if job.model in open_models]
        turn = self._turns.next(open_heads, loaded, self._peers, now)
        if turn.model:
            return turn
        shut = {job.model for job in heads} - set(open_models)
        moments = (turn.look_again_at, self.failures.next_try_at(shut))
        again_at = min((moment for moment in moments if moment is not None), default=None)
        if loaded or any(not self.failures.has_given_up(model, now) for model in shut):
            return Turn(look_again_at=again_at)
        return self._choose_idle(open_models)

    def _choose_idle(self, models: Sequence[Model]) -> Turn:
        """Choose what to load where nothing waits: what no other runner has, and what was here."""
        if not models:
            return Turn(look_again_at=self.failures.next_try_at(self.runner.models))
        taken = {*self._peers.ready, *self._peers.loading}
        return Turn(min(models, key=lambda model: (model in taken, model is not self.runner.model)))

    @property
    def _peers(self) -> Peers:
        return Peers(
            ready={peer.loaded for peer in self.peers if peer.loaded},
            loading={peer.loading for peer in self.peers if peer.loading},
        )

    async def _load(self, model: Model) -> None:
        """Start the runner, or start it anew with another model.

        Raises `RunnerLoadError` or `RunnerDiedError` where it has no other model to turn to.
        """
        before, self.loading = self.loaded, model
        self._is_switching = before is not None
        try:
            if before:
                # So that nothing is given up for what cannot be had.
                problem = await self._folders.look(model)
                if problem:
                    raise ModelNotFoundError(problem)
                log.info("switching", worker=self._name, loaded=before, model=model)
                self._parts.metrics.switched(model)
            self._was_ready = False
            self._parts.metrics.runner(self._name, up=False)
            await self.runner.start(model)
        except (RunnerLoadError, RunnerDiedError, ModelNotFoundError) as error:
            self._note_failure(model, error)
            if len(self.runner.models) == 1:
                raise
        else:
            self._was_ready = True
            self.failures.succeeded(model, self._parts.clock())
            self._parts.metrics.runner(self._name, up=True, load_seconds=self.runner.load_seconds)
        finally:
            self.loading, self._is_switching = None, False
            self._on_change()

    def _note_failure(self, model: Model, error: Exception) -> None:
        seconds = self.failures.failed(model, str(error), self._parts.clock())
        self._parts.metrics.load_failed(model)
        if len(self.runner.models) > 1:
            log.error("no model", model=model, reason=str(error), retry_seconds=seconds)

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

    async def _claim(self, model: Model) -> Job | None:
        return await self._parts.store.claim(
            self._parts.clock(), self._prefetcher.ready(), (model,)
        )

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
        if error:
            self._on_change()
        self.wake()

    async def _wait_attempts(self) -> None:
        while self._attempts:
            await asyncio.wait(set(self._attempts))

    async def _wait_wake(self, until: float | None) -> None:
        """Wait until something changes, or it is `until` on the server's clock."""
        seconds = None if until is None else max(0.0, until - self._parts.clock())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past the moment the server begins to stop."""
        deadline = asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not self._stopping:
                    self._wake.clear()
                    await self._wake.wait()
