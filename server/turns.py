"""Which model a runner serves next, where it may load several: pure, so that it can be proved.

Requests are made in the order of their acceptance, but loading a model takes as long as a start.
So those whose model is loaded may go before one whose model is not: only the next few that were
accepted after it, and only for so long. Either bound alone would do against starvation; both are
there because nobody knows how long a request takes, or how many come.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.types import Model
from server.jobs import Job

TRIES = 3
RETRY_SECONDS = 0.5
GIVEN_UP_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """What the other runners have `ready`, and what they are `loading`."""

    ready: Collection[Model] = ()
    loading: Collection[Model] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """Which model to serve next, if any; without one, when to look again if nothing happens."""

    model: Model | None = None
    look_again_at: float | None = None


class Turns:
    """Decides for one runner. Times are seconds on the server's clock.

    At most `jobs` later requests go before one that this runner would load a model for, and no more
    when that was done for `seconds`. One that is left to another runner holds nobody up here.
    """

    def __init__(self, jobs: int, seconds: float) -> None:
        self._jobs = jobs
        self._seconds = seconds
        self._overtaken: str | None = None
        self._since = 0.0

    def next(self, heads: Sequence[Job], loaded: Model | None, peers: Peers, now: float) -> Turn:
        """Choose among the first request of each model, in the order of the queue.

        One whose model another runner has is left to that one for a while, if this runner would
        have to load it; one whose model another runner loads, until it is loaded.
        """
        mine = [job for job in heads if self._is_ours(job, loaded, peers, now)]
        if not mine:
            waits = [job.created_at for job in heads if job.model not in peers.loading]
            return Turn(look_again_at=min(waits) + self._seconds if waits else None)
        first = mine[0]
        here = next((job for job in mine if job.model is loaded), None)
        if here is None or here is first:
            return Turn(first.model)
        return Turn(here.model if self._may_overtake(here, first, now) else first.model)

    def _is_ours(self, job: Job, loaded: Model | None, peers: Peers, now: float) -> bool:
        if job.model is loaded:
            return True
        if job.model in peers.loading:
            return False
        return job.model not in peers.ready or now - job.created_at >= self._seconds

    def _may_overtake(self, here: Job, first: Job, now: float) -> bool:
        """Bound by the order of acceptance, which no restart and no second runner forgets."""
        if here.priority is not first.priority or here.seq - first.seq > self._jobs:
            return False
        if self._overtaken != first.request_id:
            self._overtaken, self._since = first.request_id, now
        return now - self._since < self._seconds


@dataclass(slots=True)
class _Failure:
    reason: str
    count: int
    retry_at: float
    is_answered: bool = False
    """Whether a model was loaded since, so that whoever waited for this one was told."""


class LoadFailures:
    """Which models one runner could not load, and when it may try again.

    After `TRIES` in a row a model is given up for `GIVEN_UP_SECONDS`, and then for as long after
    each further try: each costs the model that is loaded. The pause counts from when another one is
    loaded again, however long that takes: only then its requests are answered.
    """

    def __init__(self) -> None:
        self._failures: dict[Model, _Failure] = {}

    def failed(self, model: Model, reason: str, now: float) -> float:
        """Note a try that failed; return for how many seconds there is no other."""
        before = self._failures.get(model)
        count = before.count + 1 if before else 1
        pause = GIVEN_UP_SECONDS if count >= TRIES else RETRY_SECONDS * 2 ** (count - 1)
        self._failures[model] = _Failure(reason, count, now + pause)
        return pause

    def succeeded(self, model: Model, now: float) -> None:
        """Note that a model is loaded.

        If it had been given up, what is mended may have kept others up too: they get another try.
        """
        before = self._failures.pop(model, None)
        was_given_up = before is not None and before.count >= TRIES
        for failure in self._failures.values():
            if was_given_up:
                failure.count, failure.retry_at = min(failure.count, TRIES - 1), now
            elif failure.count >= TRIES and not failure.is_answered:
                failure.is_answered, failure.retry_at = True, now + GIVEN_UP_SECONDS

    def may_try(self, model: Model, now: float) -> bool:
        """Say whether a model may be loaded now."""
        failure = self._failures.get(model)
        return failure is None or now >= failure.retry_at

    def has_given_up(self, model: Model, now: float) -> bool:
        """Say whether requests for a model need not be kept on this runner's account."""
        failure = self._failures.get(model)
        return failure is not None and failure.count >= TRIES and now < failure.retry_at

    def reason(self, model: Model) -> str | None:
        """Say why a model was not loaded at the last try; None if it was, or there was none."""
        failure = self._failures.get(model)
        return failure.reason if failure else None

    def next_try_at(self, models: Collection[Model]) -> float | None:
        """Return when the first of these may be tried again; None when none of them failed."""
        failures = (failure for model, failure in self._failures.items() if model in models)
        return min((failure.retry_at for failure in failures), default=None)
