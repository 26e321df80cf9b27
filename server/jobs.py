"""A job, every state it can be in, and the only ways from one state to the next.

Pure functions: they take a job and return a new one, and `store` makes the change durable.

    IN_QUEUE --claim--> IN_PROGRESS --complete--> COMPLETED
       ^  |                  |
       |  +--- cancel -------|------------------> COMPLETED (499)
       +------- requeue -----+

A failed or cancelled job is COMPLETED too, as on fal: its result replays the error.
"""

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from pipelines.types import Model

MAX_ATTEMPTS = 10
MAX_RUNNER_DEATHS = 3
"""A job that was running at this many deaths of its runner is taken for their cause."""


class JobStatus(StrEnum):
    """The three words that fal's clients know; any other makes them raise."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


class Priority(IntEnum):
    """fal's two priorities; lower numbers are claimed first."""

    NORMAL = 0
    LOW = 1


class Need(IntEnum):
    """What a queued job waits for beside its turn: images and LoRAs, by the way they come.

    Those from elsewhere may take as long as a stranger likes, so they are kept apart; and so are
    LoRAs from elsewhere, which may be gigabytes.
    """

    NOTHING = 0
    DECODING = 1
    FETCHING = 2
    FETCHING_LORAS = 3


class IllegalTransitionError(Exception):
    """The job is not in a state from which this change is allowed; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One stored file, by its public name. None for `expires_at` means that it is kept.

    `owner` is the key it belongs to; `acl` says as JSON, in fal's form, who else may read it
    (None: whoever knows the name).
    """

    name: str
    content_type: str
    size_bytes: int
    owner: str
    acl: str | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job came to: the answer that its result route replays.

    `body` is JSON text; `applied` tells in a header how the images were really made, `verdicts`
    what the safety check said of each, in order, separated by commas. `prompt` is what they were
    made from.
    `keep_seconds` counts from completion; after that input and result are erased. The files have
    times of their own.
    """

    http_status: int
    body: str
    keep_seconds: float
    error_type: str | None = None
    inference_seconds: float | None = None
    applied: str | None = None
    verdicts: str | None = None
    prompt: str | None = None
    logs: str = "[]"
    files: tuple[StoredFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The stored unit of work. Times are seconds since 1970 on the server's steady clock.

    `model` is the one that makes its images, `start_by` when it must have been claimed,
    `keep_payload` False means that its files go with its result soon after completion,
    `file_seconds` how long its files are kept (None: as long as the server keeps any, infinity:
    for good), `file_acl` who may read them (see `StoredFile`), `seq` its place in the order of
    acceptance, which the store gives.
    """

    request_id: str
    endpoint_id: str
    owner: str  # the id of the key it was sent with
    origin: str  # scheme, host and port under which the caller knows us, for file URLs
    created_at: float
    model: Model = Model.DEV
    input: str = ""  # JSON text, exactly what was sent; only on its way into the store
    seq: int = 0
    priority: Priority = Priority.NORMAL
    needs: Need = Need.NOTHING
    start_by: float | None = None
    no_retry: bool = False
    keep_payload: bool = True
    file_seconds: float | None = None
    file_acl: str | None = None
    webhook_url: str | None = None
    status: JobStatus = JobStatus.IN_QUEUE
    attempts: int = 0
    runner_deaths: int = 0
    cancel_requested: bool = False
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    outcome: Outcome | None = None

    @property
    def app_id(self) -> str:
        """The first two segments, `owner/alias`: under these fal keeps requests."""
        return app_id_of(self.endpoint_id)


def app_id_of(endpoint_id: str) -> str:
    """Return fal's application, the `owner/alias` of an endpoint id."""
    return "/".join(endpoint_id.split("/")[:2])


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


def end_in_queue(job: Job, outcome: Outcome, now: float) -> Job:
    """Complete a job that was never begun: its caller left, or its time to start is over."""
    _require(job, JobStatus.IN_QUEUE, "end_in_queue")
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
        not job.no_retry
        and job.attempts < MAX_ATTEMPTS
        and job.runner_deaths + runner_died < MAX_RUNNER_DEATHS
        and not job.cancel_requested
    )


def _require(job: Job, status: JobStatus, change: str) -> None:
    if job.status is not status:
        raise IllegalTransitionError(f"{change}: {job.request_id} is {job.status}")
