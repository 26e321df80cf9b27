"""Places in the queue, kept in memory: what a status needs without reading rows."""

from dataclasses import replace

from server import jobs
from server.jobs import Job, Outcome, Priority
from server.store.backlog import Backlog

OUTCOME = Outcome(http_status=200, body="{}", keep_seconds=60)


def make_job(seq: int, priority: Priority = Priority.NORMAL, path: str = "flux-2") -> Job:
    """Make a queued job with this number."""
    return Job(
        request_id=f"job{seq}",
        endpoint_id=f"fal-ai/{path}",
        owner="local",
        origin="http://box",
        input="{}",
        created_at=0.0,
        seq=seq,
        priority=priority,
    )


def test_urgent_before_old() -> None:
    """Everything of a better priority is ahead, and of the same one what came before."""
    backlog = Backlog()
    low, first, second = make_job(1, Priority.LOW), make_job(2), make_job(3)
    for job in (low, first, second):
        backlog.follow(None, job)
    assert [backlog.count_ahead(job) for job in (first, second, low)] == [0, 1, 2]
    assert len(backlog) == 3


def test_a_job_leaves_and_comes_back_to_its_place() -> None:
    """A claim moves the others up, and a requeue takes the old place again."""
    backlog = Backlog()
    first, second = make_job(1), make_job(2)
    for job in (first, second):
        backlog.follow(None, job)
    claimed = jobs.claim(first, 1.0)
    backlog.follow(first, claimed)
    assert (backlog.count_ahead(second), backlog.in_progress, len(backlog)) == (0, 1, 1)
    back = jobs.requeue(claimed, runner_died=True, charge_attempt=True)
    backlog.follow(claimed, back)
    assert (backlog.count_ahead(second), backlog.in_progress, len(backlog)) == (1, 0, 2)
    backlog.follow(back, jobs.end_in_queue(back, OUTCOME, 2.0))
    assert (backlog.count_ahead(second), len(backlog)) == (0, 1)


def test_a_mark_moves_nothing() -> None:
    """A running job that is asked to stop still runs, once."""
    backlog = Backlog()
    queued = make_job(1)
    backlog.follow(None, queued)
    running = jobs.claim(queued, 1.0)
    backlog.follow(queued, running)
    backlog.follow(running, replace(running, cancel_requested=True))
    assert (backlog.in_progress, len(backlog)) == (1, 0)
    backlog.follow(running, jobs.complete(running, OUTCOME, 2.0))
    assert (backlog.in_progress, len(backlog)) == (0, 0)


def test_it_begins_with_the_rows() -> None:
    """What was loaded counts as what was followed, by application and priority."""
    backlog = Backlog()
    backlog.load(
        [
            (0, 4, "fal-ai/flux-2", "a"),
            (0, 7, "fal-ai/flux-2/flash", "b"),
            (1, 2, "fal-ai/other", "a"),
        ]
    )
    assert len(backlog) == 3
    assert backlog.count_ahead(make_job(7)) == 1
    assert backlog.count_ahead(make_job(2, Priority.LOW)) == 2
    assert backlog.count_by_app() == {
        ("fal-ai/flux-2", Priority.NORMAL): 2,
        ("fal-ai/other", Priority.LOW): 1,
    }
    assert [backlog.count_of(owner) for owner in "abc"] == [2, 1, 0]


def test_each_key_has_a_count_of_its_own() -> None:
    """It follows every way into the queue and out of it, whatever the priority."""
    backlog = Backlog()
    mine = [make_job(1), make_job(2, Priority.LOW)]
    for job in (*mine, replace(make_job(3), owner="other")):
        backlog.follow(None, job)
    claimed = jobs.claim(mine[0], 1.0)
    backlog.follow(mine[0], claimed)
    assert (backlog.count_of("local"), backlog.count_of("other")) == (1, 1)
    backlog.follow(claimed, jobs.requeue(claimed, runner_died=True, charge_attempt=True))
    backlog.follow(mine[1], jobs.end_in_queue(mine[1], OUTCOME, 2.0))
    assert (backlog.count_of("local"), backlog.count_of("other")) == (1, 1)
