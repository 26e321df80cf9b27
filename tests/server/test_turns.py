"""Whose turn it is: affinity that is bounded in number and in time, and what cannot be loaded."""

import random
from collections.abc import Iterable

import pytest

from pipelines.types import Model
from server.jobs import Job, Priority
from server.turns import GIVEN_UP_SECONDS, RETRY_SECONDS, TRIES, LoadFailures, Peers, Turn, Turns

DEV, K4, K9 = Model.DEV, Model.KLEIN_4B, Model.KLEIN_9B
JOBS, SECONDS = 16, 30.0
ALONE = Peers()


def job(
    seq: int, model: Model, created_at: float = 0.0, priority: Priority = Priority.NORMAL
) -> Job:
    """Make a queued job."""
    return Job(
        request_id=str(seq),
        endpoint_id="any/endpoint",
        owner="local",
        origin="http://box",
        created_at=created_at,
        seq=seq,
        model=model,
        priority=priority,
    )


def heads_of(queue: Iterable[Job]) -> list[Job]:
    """Return the first job of each model, as the store does."""
    firsts: dict[Model, Job] = {}
    for waiting in sorted(queue, key=lambda waiting: (waiting.priority, waiting.seq)):
        firsts.setdefault(waiting.model, waiting)
    return list(firsts.values())


class Runner:
    """One runner on a queue with a clock of its own: jobs and loading take seconds."""

    def __init__(
        self, job_seconds: float, load_seconds: float = 60.0, seconds: float = SECONDS
    ) -> None:
        self.turns = Turns(JOBS, seconds)
        self.loaded: Model | None = None
        self.now = 0.0
        self.switches = 0
        self.made: list[Job] = []
        self._job_seconds = job_seconds
        self._load_seconds = load_seconds

    def make_next(self, queue: list[Job]) -> Job:
        """Take a job off the queue and make it."""
        turn = self.turns.next(heads_of(queue), self.loaded, ALONE, self.now)
        assert turn.model is not None
        if turn.model is not self.loaded:
            self.switches += 1
            self.now += self._load_seconds
            self.loaded = turn.model
        mine = next(head for head in heads_of(queue) if head.model is self.loaded)
        queue.remove(mine)
        self.now += self._job_seconds
        self.made.append(mine)
        return mine


@pytest.mark.parametrize("job_seconds", [0.001, 1.0, 5.0, 40.0])
def test_nobody_starves(job_seconds: float) -> None:
    """Under a stream of others that never ends, few of them are made before it, or for long."""
    runner = Runner(job_seconds)
    queue = [job(0, DEV)]
    runner.make_next(queue)
    queue = [job(1, K4), *(job(seq, DEV) for seq in range(2, 6))]
    began, seq = runner.now, 6
    while runner.make_next(queue).model is DEV:
        queue.append(job(seq, DEV))
        queue.append(job(seq + 1, DEV))
        seq += 2
        assert seq < 100
    overtakers = len(runner.made) - 2
    assert 1 <= overtakers <= JOBS
    assert runner.now - began <= SECONDS + 2 * job_seconds + 60


def test_mixed_work_is_made_in_batches() -> None:
    """Many that alternate cost a switch for each few, not for each; every one is made."""
    runner = Runner(1.0)
    queue = [job(seq, (DEV, K4)[seq % 2]) for seq in range(200)]
    while queue:
        runner.make_next(queue)
    assert len(runner.made) == 200
    assert runner.switches <= 200 / (JOBS / 2) + 1
    places = {made.request_id: place for place, made in enumerate(runner.made)}
    assert all(place - int(name) <= JOBS for name, place in places.items())


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_for_whatever_comes(seed: int) -> None:
    """With three models in any order, none is overtaken by what was accepted much later."""
    dice = random.Random(seed)
    runner, queue, seq = Runner(dice.choice([0.01, 2.0, 20.0])), [job(0, DEV)], 1
    for _ in range(300):
        for _ in range(dice.choice([0, 1, 1, 2]) if queue else 1):
            queue.append(job(seq, dice.choice([DEV, DEV, DEV, K4, K9]), created_at=runner.now))
            seq += 1
        made = runner.make_next(queue)
        assert all(made.seq - waiting.seq <= JOBS for waiting in queue)


def test_no_overtaking_keeps_to_the_order() -> None:
    """With either bound at nothing, requests are made strictly one after the other."""
    for turns in (Turns(0, SECONDS), Turns(JOBS, 0)):
        heads = [job(1, K4), job(2, DEV)]
        assert turns.next(heads, DEV, ALONE, 0.0) == Turn(K4)


def test_low_priority_overtakes_nobody() -> None:
    """However near: what is loaded for it is given up for the more urgent."""
    heads = [job(9, K4), job(8, DEV, priority=Priority.LOW)]
    assert Turns(JOBS, SECONDS).next(heads, DEV, ALONE, 0.0) == Turn(K4)


def test_time_counts_from_the_first_to_overtake() -> None:
    """Not from acceptance: after an hour in a long queue it is passed by as few as any other."""
    turns, now = Turns(JOBS, SECONDS), 3600.0
    heads = [job(1, K4), job(2, DEV)]
    assert turns.next(heads, DEV, ALONE, now) == Turn(DEV)
    assert turns.next(heads, DEV, ALONE, now + SECONDS - 1) == Turn(DEV)
    assert turns.next(heads, DEV, ALONE, now + SECONDS) == Turn(K4)
    assert turns.next([job(3, K4), job(4, DEV)], DEV, ALONE, now + SECONDS) == Turn(DEV)


def test_what_another_runner_has_is_left_to_it() -> None:
    """For a while if that is ready, and for as long as it loads; then any runner helps."""
    turns = Turns(JOBS, SECONDS)
    heads = [job(1, K4, created_at=100.0)]
    ready, loading = Peers(ready={K4}), Peers(loading={K4})
    assert turns.next(heads, DEV, ready, 110.0) == Turn(look_again_at=130.0)
    assert turns.next(heads, DEV, ready, 130.0) == Turn(K4)
    assert turns.next(heads, DEV, loading, 1000.0) == Turn()
    assert turns.next([*heads, job(2, K9)], DEV, loading, 110.0) == Turn(K9)
    assert turns.next(heads, K4, ready, 110.0) == Turn(K4)
    assert turns.next([], DEV, ready, 110.0) == Turn()


def test_an_empty_runner_takes_the_first() -> None:
    """With nothing loaded, the order alone counts."""
    assert Turns(JOBS, SECONDS).next([job(1, K9), job(2, DEV)], None, ALONE, 0.0) == Turn(K9)


def test_a_model_is_given_up_after_some_tries() -> None:
    """Each failure puts off the next try; the third for minutes; a success forgets them all."""
    failures, now = LoadFailures(), 100.0
    assert failures.may_try(DEV, now)
    for number in range(TRIES):
        assert not failures.has_given_up(DEV, now)
        now += failures.failed(DEV, f"reason {number}", now)
        assert failures.may_try(DEV, now)
        assert not failures.may_try(DEV, now - RETRY_SECONDS / 2)
    assert failures.next_try_at((DEV, K4)) == now
    assert failures.next_try_at((K4,)) is None
    assert failures.has_given_up(DEV, now - GIVEN_UP_SECONDS / 2)
    assert not failures.has_given_up(DEV, now)
    assert failures.failed(DEV, "again", now) == GIVEN_UP_SECONDS
    assert (failures.reason(DEV), failures.reason(K4)) == ("again", None)
    failures.succeeded(DEV, now)
    assert failures.may_try(DEV, now)
    assert failures.reason(DEV) is None


def test_a_recovery_gives_the_others_another_try() -> None:
    """What was wrong may have been the device; a model that was never given up says nothing."""
    failures = LoadFailures()
    for model in (DEV, K4):
        for _ in range(TRIES):
            failures.failed(model, "no device", 100.0)
    failures.failed(K9, "a moment's trouble", 100.0)
    failures.succeeded(K9, 101.0)
    assert failures.has_given_up(DEV, 101.0)
    failures.succeeded(K4, 102.0)
    assert failures.may_try(DEV, 102.0)
    assert not failures.has_given_up(DEV, 102.0)
    assert failures.failed(DEV, "its own fault", 102.0) == GIVEN_UP_SECONDS


def test_a_pause_counts_from_when_another_model_is_loaded() -> None:
    """However long that takes: until then nobody was answered. Later loads do not prolong it."""
    failures, now = LoadFailures(), 100.0
    for _ in range(TRIES):
        failures.failed(K4, "broken", now)
    now += 2 * GIVEN_UP_SECONDS
    assert not failures.has_given_up(K4, now)
    failures.succeeded(DEV, now)
    assert failures.has_given_up(K4, now)
    assert not failures.may_try(K4, now + GIVEN_UP_SECONDS - 1)
    failures.succeeded(K9, now + GIVEN_UP_SECONDS / 2)
    assert failures.may_try(K4, now + GIVEN_UP_SECONDS)
