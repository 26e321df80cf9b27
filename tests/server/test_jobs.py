"""Jobs: the legal transitions, and that there are no others."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from server import jobs
from server.jobs import IllegalTransitionError, Job, JobStatus, Outcome

OUTCOME = Outcome(http_status=200, body="{}", keep_seconds=60)
QUEUED = Job(
    request_id="r",
    endpoint_id="fal-ai/flux-2/flash/edit",
    owner="local",
    origin="http://box",
    input="{}",
    created_at=1.0,
)
RUNNING = jobs.claim(QUEUED, 2.0)
COMPLETED = jobs.complete(RUNNING, OUTCOME, 3.0)


def test_claim_starts_an_attempt() -> None:
    """A claimed job runs, and the attempt is counted at its start."""
    assert RUNNING.status is JobStatus.IN_PROGRESS
    assert (RUNNING.attempts, RUNNING.started_at) == (1, 2.0)


def test_complete_sets_the_outcome_and_its_end() -> None:
    """The outcome expires its own time after completion."""
    assert COMPLETED.status is JobStatus.COMPLETED
    assert (COMPLETED.outcome, COMPLETED.completed_at, COMPLETED.expires_at) == (OUTCOME, 3.0, 63.0)


def test_a_completed_job_never_changes() -> None:
    """The first outcome counts: no transition leaves COMPLETED."""
    changes: list[Callable[[], Job]] = [
        lambda: jobs.claim(COMPLETED, 4.0),
        lambda: jobs.complete(COMPLETED, OUTCOME, 4.0),
        lambda: jobs.cancel(COMPLETED, OUTCOME, 4.0),
        lambda: jobs.requeue(COMPLETED, runner_died=False, charge_attempt=True),
    ]
    for change in changes:
        with pytest.raises(IllegalTransitionError):
            change()


def test_a_running_job_is_not_claimed_and_a_queued_one_not_requeued() -> None:
    """Transitions check where they start from."""
    with pytest.raises(IllegalTransitionError):
        jobs.claim(RUNNING, 4.0)
    with pytest.raises(IllegalTransitionError):
        jobs.requeue(QUEUED, runner_died=False, charge_attempt=True)


def test_cancel_ends_a_queued_job_and_asks_a_running_one() -> None:
    """Cancel is immediate in the queue and a request while running."""
    assert jobs.cancel(QUEUED, OUTCOME, 4.0).status is JobStatus.COMPLETED
    asked = jobs.cancel(RUNNING, OUTCOME, 4.0)
    assert asked.status is JobStatus.IN_PROGRESS
    assert asked.cancel_requested


def test_requeue_charges_what_is_due() -> None:
    """A runner's death costs an attempt and a death; a drained attempt costs nothing."""
    died = jobs.requeue(RUNNING, runner_died=True, charge_attempt=True)
    assert (died.status, died.attempts, died.runner_deaths) == (JobStatus.IN_QUEUE, 1, 1)
    drained = jobs.requeue(RUNNING, runner_died=False, charge_attempt=False)
    assert (drained.attempts, drained.runner_deaths, drained.started_at) == (0, 0, None)


@pytest.mark.parametrize(
    ("attempts", "deaths", "died", "cancelled", "expected"),
    [
        (1, 0, True, False, True),
        (2, 1, True, False, True),
        (3, 2, True, False, False),  # the third death
        (9, 0, False, False, True),
        (10, 0, False, False, False),  # the tenth attempt
        (1, 0, False, True, False),
    ],
)
def test_retry_policy(
    *, attempts: int, deaths: int, died: bool, cancelled: bool, expected: bool
) -> None:
    """At most ten attempts, at most three deaths, and none after a cancel."""
    job = replace(RUNNING, attempts=attempts, runner_deaths=deaths, cancel_requested=cancelled)
    assert jobs.may_retry(job, runner_died=died) is expected


def test_app_id_is_owner_and_alias() -> None:
    """Requests are kept under the first two segments."""
    assert QUEUED.app_id == "fal-ai/flux-2"
