"""The one clock: forward only, at an even pace."""

import time

import pytest

from server.clock import SteadyClock

YEAR_SECONDS = 365 * 24 * 3600


@pytest.mark.parametrize("jump", [YEAR_SECONDS, -YEAR_SECONDS])
def test_a_jump_of_the_system_s_clock_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    """What was read at the start counts, and from there on the monotonic time."""
    real, monotonic = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic)
    clock = SteadyClock()
    assert clock() == pytest.approx(real)
    monkeypatch.setattr(time, "time", lambda: real + jump)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic + 5)
    assert clock() == pytest.approx(real + 5)


def test_it_never_runs_behind_what_is_stored() -> None:
    """After a restart with a clock set back it continues from the newest stored moment."""
    clock = SteadyClock()
    ahead = clock() + YEAR_SECONDS
    clock.not_before(ahead)
    assert clock() == pytest.approx(ahead, abs=1)
    clock.not_before(ahead - YEAR_SECONDS)
    assert clock() >= ahead
