"""How often: token buckets by name, for keys that send requests and addresses that guess."""

from collections import OrderedDict

from server.clock import Clock

MAX_NAMES = 10_000
"""A name not heard of for long is forgotten when there are more: its bucket is most likely full."""


class TokenBuckets:
    """For each name so many a minute: all of them at once, then one for each that flows in."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, name: str, per_minute: int) -> float:
        """Return how long it is until there is a token, 0 when there is one."""
        return max(0.0, 1 - self._level(name, per_minute)) * 60 / per_minute

    def take(self, name: str, per_minute: int) -> float:
        """Take a token and return 0, or take none and return how long it is until there is one."""
        seconds = self.wait_seconds(name, per_minute)
        if not seconds:
            self._buckets[name] = (self._level(name, per_minute) - 1, self._clock())
            self._buckets.move_to_end(name)
            if len(self._buckets) > MAX_NAMES:
                self._buckets.popitem(last=False)
        return seconds

    def _level(self, name: str, per_minute: int) -> float:
        level, at = self._buckets.get(name, (float(per_minute), 0.0))
        return min(float(per_minute), level + (self._clock() - at) * per_minute / 60)
