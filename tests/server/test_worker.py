"""One worker: whatever fails around an attempt, its job leaves with an outcome or waits again."""

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Collection

import pytest

import server.attempts
import server.worker
from server import jobs
from server.family.endpoint import Order
from server.inputs import InputPreparer
from server.jobs import Job
from server.results import cancelled_error, error_outcome
from server.runners.local import RunnerState
from server.settings import Settings
from server.store import Store, StoreUnavailableError
from server.store.store import Transition
from tests.server.test_dispatcher import Box

pytestmark = pytest.mark.anyio

TRIES = 4
WAIT_SECONDS = 30


@pytest.fixture
async def box(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Box]:
    """Return a box whose worker does not begin yet and wastes no time between its tries."""
    monkeypatch.setattr(server.worker, "FIRST_RESPAWN_SECONDS", 0.001)
    monkeypatch.setattr(server.worker, "LONGEST_RESPAWN_SECONDS", 0.01)
    for module in (server.attempts, server.worker):
        monkeypatch.setattr(module, "STORAGE_RETRY_SECONDS", 0.001)
    box = Box(settings)
    await box.store.open()
    yield box
    await box.dispatcher.stop(0)
    await box.store.close()


async def test_a_result_that_cannot_be_committed_ends_the_job(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours in the commit is tried as often as any attempt, then the job fails.

    Left IN_PROGRESS, the job would wait for the next restart, and do the same again.
    """
    monkeypatch.setattr(jobs, "MAX_ATTEMPTS", TRIES)
    change, refused = box.store.change, 0

    async def refuse_success(request_id: str, transition: Transition) -> Job | None:
        def guarded(job: Job) -> Job:
            nonlocal refused
            new = transition(job)
            if request_id == "bad" and new.outcome and new.outcome.http_status == 200:
                refused += 1
                raise TypeError("a fault in building the row")
            return new

        return await change(request_id, guarded)

    monkeypatch.setattr(box.store, "change", refuse_success)
    await box.submit("bad", "plain")
    await box.submit("good", "plain")
    box.dispatcher.start()
    outcome = await box.outcome("bad")
    assert (outcome.http_status, outcome.error_type) == (500, "internal_error")
    assert refused == TRIES
    assert (await box.outcome("good")).http_status == 200


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), StoreUnavailableError("disk full")],
)
async def test_a_full_disk_holds_the_inputs_up(
    box: Box, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A claimed request whose input cannot be had for now waits for it, and does not fail."""
    read, failures, problems = box.parts.inputs.read, 3, []

    async def fail_thrice(self: InputPreparer, job: Job) -> Order:
        nonlocal failures
        assert self is box.parts.inputs
        problems.append(box.dispatcher.problem)
        failures -= 1
        if failures >= 0:
            raise error
        return await read(job)

    monkeypatch.setattr(InputPreparer, "read", fail_thrice)
    await box.submit("one", "plain")
    box.dispatcher.start()
    assert (await box.outcome("one")).http_status == 200
    assert problems[0] is None
    assert all(str(problem).startswith("storage: ") for problem in problems[1:])
    assert box.dispatcher.problem is None


async def test_a_refused_claim_is_tried_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is locked for a while costs time and no job."""
    claim, failures = box.store.claim, 3

    async def fail_thrice(self: Store, now: float, prepared: Collection[str]) -> Job | None:
        nonlocal failures
        assert self is box.store
        failures -= 1
        if failures >= 0:
            raise StoreUnavailableError("database is locked")
        return await claim(now, prepared)

    monkeypatch.setattr(Store, "claim", fail_thrice)
    await box.submit("one", "plain")
    box.dispatcher.start()
    assert (await box.outcome("one")).http_status == 200
    job = await box.store.get("one")
    assert job is not None
    assert job.attempts == 1


async def test_a_cancel_from_an_earlier_life_counts(box: Box) -> None:
    """A job that was asked to stop while a server ran it is not begun anew by the next."""
    await box.submit("one", "hold")
    await box.store.claim(box.clock())
    cancelled = error_outcome(cancelled_error(), 60)
    await box.store.change("one", lambda job: jobs.cancel(job, cancelled, box.clock()))
    await box.store.requeue_all_in_progress()
    box.dispatcher.start()
    outcome = await box.outcome("one")
    assert (outcome.http_status, outcome.error_type) == (499, "client_cancelled")
    assert json.loads(outcome.logs)[-1]["message"].startswith("Started")


async def test_a_stop_while_loading_claims_nothing(box: Box) -> None:
    """A stop before the runner is ready leaves the queue as it is, and does not wait."""
    await box.submit("one", "hold")
    box.dispatcher.start()
    async with asyncio.timeout(WAIT_SECONDS):
        while box.runner.state is not RunnerState.LOADING:  # noqa: ASYNC110  (it tells nobody)
            await asyncio.sleep(0)
    async with asyncio.timeout(WAIT_SECONDS):
        await box.dispatcher.stop(10 * WAIT_SECONDS)
    job = await box.store.get("one")
    assert job is not None
    assert job.attempts == 0
    assert box.runner.pid is None
