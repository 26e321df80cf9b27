"""What is happening right now, in memory: who waits for a job, what it shows, and its log.

Nothing here needs to survive: a waiting caller is gone after a restart, and an attempt that was
cut off starts its log anew.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from server.schemas import LogEntry

MAX_LOG_LINES = 1000


class Events:
    """Wakes whoever watches a job, and keeps the logs of the jobs that run."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._logs: dict[str, list[LogEntry]] = {}
        self._previews: dict[str, dict[str, Any] | None] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once the server is stopping: what a watcher waits for may never come."""
        return self._closed

    @contextmanager
    def watch(self, request_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set at every change of the job; the watcher clears it.

        Look at the store only after entering, or a change in between goes unseen.
        """
        event = asyncio.Event()
        if self._closed:
            event.set()
        self._watchers[request_id].add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[request_id]
            watchers.discard(event)
            if not watchers:
                del self._watchers[request_id]

    def notify(self, request_id: str) -> None:
        """Tell the job's watchers that it changed."""
        for event in self._watchers.get(request_id, ()):
            event.set()

    def close(self) -> None:
        """Wake every watcher for good."""
        self._closed = True
        for request_id in list(self._watchers):
            self.notify(request_id)

    @contextmanager
    def want_previews(self, request_id: str) -> Iterator[None]:
        """Have a job show how far its images are, from its next attempt on, to one listener."""
        self._previews[request_id] = None
        try:
            yield
        finally:
            del self._previews[request_id]

    def wants_previews(self, request_id: str) -> bool:
        """Say whether somebody watches this job's images come."""
        return request_id in self._previews

    def show(self, request_id: str, partial: dict[str, Any]) -> None:
        """Give the listener a partial answer; one that it has not taken yet is dropped."""
        if request_id in self._previews:
            self._previews[request_id] = partial
            self.notify(request_id)

    def take_preview(self, request_id: str) -> dict[str, Any] | None:
        """Return the newest partial answer, once."""
        partial = self._previews.get(request_id)
        if partial is not None:
            self._previews[request_id] = None
        return partial

    def start_log(self, request_id: str) -> None:
        """Begin an empty log for an attempt."""
        self._logs[request_id] = []

    def log(self, request_id: str, message: str, level: str = "INFO") -> None:
        """Add a line to the log of a running job; lines past the thousandth are dropped."""
        lines = self._logs.get(request_id)
        if lines is not None and len(lines) < MAX_LOG_LINES:
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            lines.append(
                LogEntry.model_validate(
                    {
                        "message": message,
                        "timestamp": now,
                        "level": level,
                        "source": "USER",
                        "labels": {"level": level},
                    }
                )
            )
            self.notify(request_id)

    def read_log(self, request_id: str) -> list[LogEntry]:
        """Return the lines so far; none when the job does not run."""
        return list(self._logs.get(request_id, ()))

    def dump_log(self, request_id: str) -> str:
        """Return the lines so far as JSON text, for the job's record."""
        return json.dumps([line.model_dump() for line in self.read_log(request_id)])

    def end_log(self, request_id: str) -> None:
        """Forget the log: by now it is on record, or the attempt came to nothing."""
        self._logs.pop(request_id, None)
