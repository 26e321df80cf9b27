"""The one clock for everything that is stored or due.

Wall-clock time at the start of the process, monotonic from there on: a jump of the system's
clock neither erases a result early nor holds a deadline back. Over a restart it follows the
wall clock again, but never runs behind what is already stored.
"""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Gives seconds since 1970."""


class SteadyClock:
    """A clock that only goes forward, at the pace of `time.monotonic`."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Return the seconds since 1970, as this process counts them."""
        return time.monotonic() + self._offset

    def not_before(self, moment: float) -> None:
        """Move forward to `moment` if that is ahead: the system's clock was set back."""
        self._offset += max(0.0, moment - self())
