"""How far the loading of a model is, told as often as somebody may want to know."""

import time
from collections.abc import Callable

from server.runners.messages import Loading

PAUSE_SECONDS = 0.25


class LoadProgress:
    """Passes on what a pipeline factory tells, a few times a second.

    The first and the last word of each stage are always passed on.
    """

    def __init__(
        self, send: Callable[[Loading], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._clock = clock
        self._newest: Loading | None = None
        self._is_held_back = False
        self._sent_at = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        """Note that this fraction of the stage is done: `pipelines.types.OnLoadProgress`."""
        is_new = self._newest is None or self._newest.stage != stage
        if is_new:
            self.flush()
        self._newest = Loading(stage=stage, fraction=round(fraction, 3))
        self._is_held_back = True
        if is_new or fraction >= 1 or self._clock() - self._sent_at >= PAUSE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Pass on what is held back, for nothing more may come."""
        if self._newest and self._is_held_back:
            self._is_held_back = False
            self._sent_at = self._clock()
            self._send(self._newest)
