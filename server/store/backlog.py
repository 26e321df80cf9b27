"""How many are ahead: the queued jobs in claim order, in memory.

Counting rows would cost more the longer the queue is, and every submit and status asks. The
database stays the truth: this is rebuilt from it at start and follows each commit.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable

from server.jobs import Job, JobStatus, Priority, app_id_of


class Backlog:
    """The queued jobs' numbers, sorted, one list for each priority.

    A new job is appended, a claim takes the first: both are cheap at any length, and a place is
    found by bisection.
    """

    def __init__(self) -> None:
        self._queued: dict[Priority, list[int]] = {priority: [] for priority in Priority}
        self._by_app: Counter[tuple[str, Priority]] = Counter()
        self._by_owner: Counter[str] = Counter()
        self.in_progress = 0

    def __len__(self) -> int:
        return sum(map(len, self._queued.values()))

    def load(self, queued: Iterable[tuple[int, int, str, str]]) -> None:
        """Begin with the database's (priority, seq, endpoint id, owner), sorted."""
        for number, seq, endpoint_id, owner in queued:
            priority = Priority(number)
            self._queued[priority].append(seq)
            self._by_app[app_id_of(endpoint_id), priority] += 1
            self._by_owner[owner] += 1

    def follow(self, old: Job | None, new: Job) -> None:
        """Note a committed change; `old` is None for a new job."""
        if old and old.status is JobStatus.IN_QUEUE:
            queued = self._queued[old.priority]
            del queued[bisect_left(queued, old.seq)]
            self._by_app[old.app_id, old.priority] -= 1
            self._by_owner[old.owner] -= 1
        if new.status is JobStatus.IN_QUEUE:
            insort(self._queued[new.priority], new.seq)
            self._by_app[new.app_id, new.priority] += 1
            self._by_owner[new.owner] += 1
        was_running = bool(old and old.status is JobStatus.IN_PROGRESS)
        self.in_progress += (new.status is JobStatus.IN_PROGRESS) - was_running

    def count_by_app(self) -> dict[tuple[str, Priority], int]:
        """Count the queued jobs of each application and priority."""
        return dict(self._by_app)

    def count_of(self, owner: str) -> int:
        """Count the queued jobs of one key."""
        return self._by_owner[owner]

    def count_ahead(self, job: Job) -> int:
        """Count the queued jobs that will be claimed before this one."""
        more_urgent = (self._queued[other] for other in Priority if other < job.priority)
        return sum(map(len, more_urgent)) + bisect_left(self._queued[job.priority], job.seq)
