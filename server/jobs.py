"""A job, every state it can be in, and the only ways from one state to the next.

Pure functions: they take a job and return a new one, and `store` makes the change durable.

    IN_QUEUE --claim--> IN_PROGRESS --complete--> COMPLETED
       ^  |                  |
       |  +--- cancel -------|------------------> COMPLETED (499)
       +------- requeue -----+

A failed or cancelled job is COMPLETED too, as on fal: its result replays the error.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

MAX_ATTEMPTS = 10
MAX_RUNNER_DEATHS = 3
"""A job that was running at this many deaths of its runner is taken for their cause."""


class JobStatus(StrEnum):
    """The three words that fal's clients know; any other makes them raise."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


class IllegalTransitionError(Exception):
    """The job is not in a state from which this change is allowed; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file that belongs to a job: `name` is its public name, and where it lies on disk."""

    name: str
    content_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job came to: the answer that its result route replays.

    `body` is JSON text. `keep_seconds` counts from completion; after that input and result are
    erased and the files deleted.
    """

    http_status: int
    body: str
    keep_seconds: float
    error_type: str | None = None
    inference_seconds: float | None = None
    logs: str = "[]"
    files: tuple[StoredFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The stored unit of work. Times are wall-clock seconds since 1970, for display and expiry."""

    request_id: str
    endpoint_id: str
    origin: str  # scheme, host and port under which the caller knows us, for file URLs
    input: str  # JSON text, exactly what was sent
    created_at: float
    status: JobStatus = JobStatus.IN_QUEUE
    attempts: int = 0
    runner_deaths: int = 0
    cancel_requested: bool = False
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    outcome: Outcome | None = field(default=None)

    @property
    def app_id(self) -> str:
        """The first two segments, `owner/alias`: under these fal keeps requests."""
        return "/".join(self.endpoint_id.split("/")[:2])


def claim(job: Job, now: float) -> Job:
    """Take a queued job for running; this starts an attempt."""
    _require(job, JobStatus.IN_QUEUE, "claim")
    return replace(job, status=JobStatus.IN_PROGRESS, attempts=job.attempts + 1, started_at=now)


def complete(job: Job, outcome: Outcome, now: float) -> Job:
    """Give a job its one and only outcome."""
    if job.status is JobStatus.COMPLETED:
        raise IllegalTransitionError(f"{job.request_id} is COMPLETED already")
    return replace(
        job,
        status=JobStatus.COMPLETED,
        completed_at=now,
        expires_at=now + outcome.keep_seconds,
        outcome=outcome,
    )


def cancel(job: Job, outcome: Outcome, now: float) -> Job:
    """Complete a queued job with `outcome` at once, or ask a running one to stop.

    Raises `IllegalTransitionError` when the job is over already.
    """
    if job.status is JobStatus.IN_PROGRESS:
        return replace(job, cancel_requested=True)
    return complete(job, outcome, now)


def requeue(job: Job, *, runner_died: bool, charge_attempt: bool) -> Job:
    """Put a running job back, at its old place; `charge_attempt` says if the try counts."""
    _require(job, JobStatus.IN_PROGRESS, "requeue")
    return replace(
        job,
        status=JobStatus.IN_QUEUE,
        started_at=None,
        attempts=job.attempts if charge_attempt else job.attempts - 1,
        runner_deaths=job.runner_deaths + runner_died,
    )


def may_retry(job: Job, *, runner_died: bool) -> bool:
    """Say whether a job whose attempt was lost gets another one."""
    return (
        job.attempts < MAX_ATTEMPTS
        and job.runner_deaths + runner_died < MAX_RUNNER_DEATHS
        and not job.cancel_requested
    )


def _require(job: Job, status: JobStatus, change: str) -> None:
    if job.status is not status:
        raise IllegalTransitionError(f"{change}: {job.request_id} is {job.status}")
