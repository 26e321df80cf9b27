"""Token buckets: how many at once, how soon again, and no memory of names long gone."""

import pytest

from server import limiter
from server.limiter import TokenBuckets


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_a_minute_s_worth_at_once_and_then_one_by_one() -> None:
    """A rested name has all its tokens; after that each comes at its time, for this name alone."""
    clock = Hand()
    buckets = TokenBuckets(clock)
    assert [buckets.take("a", 6) for _ in range(7)] == [0.0] * 6 + [10.0]
    assert buckets.take("b", 6) == 0.0
    clock.now += 4
    assert buckets.take("a", 6) == pytest.approx(6.0)
    clock.now += 6.001
    assert buckets.wait_seconds("a", 6) == 0.0
    assert buckets.take("a", 6) == 0.0
    assert buckets.take("a", 6) > 9
    clock.now += 3600
    assert [buckets.take("a", 6) for _ in range(7)][:6] == [0.0] * 6


def test_names_long_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand strangers take no more memory than the limit; who came last is remembered."""
    monkeypatch.setattr(limiter, "MAX_NAMES", 10)
    buckets = TokenBuckets(Hand())
    for number in range(1000):
        buckets.take(f"stranger {number}", 1)
    assert len(buckets._buckets) == 10
    assert buckets.take("stranger 999", 1) > 0
    assert buckets.take("stranger 0", 1) == 0
