"""Events: nobody who watches misses a change."""

import json

import pytest

from server.events import MAX_LOG_LINES, Events

pytestmark = pytest.mark.anyio


async def test_watchers_hear_of_their_own_job_only() -> None:
    """A change wakes those who watch that job, until they leave."""
    events = Events()
    with events.watch("a") as first, events.watch("a") as second, events.watch("b") as other:
        events.notify("a")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
    events.notify("a")
    assert events._watchers == {}


async def test_closing_wakes_everybody_now_and_later() -> None:
    """Who waits at the stop is woken, and who comes after does not begin to wait."""
    events = Events()
    with events.watch("a") as before:
        events.close()
        assert before.is_set()
    with events.watch("b") as after:
        assert after.is_set()
    assert events.closed


async def test_logs_are_kept_while_the_job_runs() -> None:
    """Lines have every key that some client reads, and end as JSON for the job's record."""
    events = Events()
    events.log("a", "too early")
    events.start_log("a")
    events.log("a", "hello", "WARN")
    (line,) = events.read_log("a")
    assert (line.message, line.level, line.labels) == ("hello", "WARN", {"level": "WARN"})
    assert line.timestamp.endswith("Z")
    (stored,) = json.loads(events.dump_log("a"))
    assert stored["message"] == "hello"
    assert events.read_log("a") == [line]
    events.end_log("a")
    assert events.read_log("a") == []
    assert events.dump_log("a") == "[]"


async def test_a_log_is_bounded() -> None:
    """A request cannot fill the memory with progress."""
    events = Events()
    events.start_log("a")
    for number in range(MAX_LOG_LINES + 10):
        events.log("a", str(number))
    assert len(events.read_log("a")) == MAX_LOG_LINES
