"""The one door into the queue."""

import json
import math
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from server.clock import Clock
from server.errors import RequestError
from server.family.endpoint import Endpoint
from server.image_urls import need_of
from server.jobs import Job, Priority
from server.keys import Caller
from server.limiter import TokenBuckets
from server.names import OwnNames
from server.offer import Offer
from server.settings import Settings
from server.store import Store
from server.telemetry import prompt_in

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a caller may ask of the queue beside the input; see `routes/wishes`."""

    priority: Priority = Priority.NORMAL
    start_seconds: float | None = None
    no_retry: bool = False
    keep_payload: bool = True
    file_seconds: float | None = None
    file_acl: str | None = None
    webhook_url: str | None = None
    queue_limit: int | None = None


class Admission:
    """Accepts requests: once `accept` returns, the job is kept until it is answered."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clock: Clock,
        on_accepted: Callable[[Job], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._on_accepted = on_accepted
        self._requests = TokenBuckets(clock)
        self._own_names = OwnNames.of(settings)
        self._offer = Offer.of(settings)

    def find_endpoint(self, endpoint_id: str) -> Endpoint:
        """Return the endpoint that a request may be for. Raises as `Offer.find`."""
        return self._offer.find(endpoint_id)

    async def accept(
        self, caller: Caller, endpoint: Endpoint, body: Any, origin: str, wishes: Wishes
    ) -> Job:
        """Store a new job for this input, which is not validated here, and wake the dispatcher.

        `origin` is the scheme, host and port under which the caller knows this server. Raises
        `RequestError` 429 when the queue is too long or the caller's own limits are reached, and
        503 when the disk is too full.
        """

        def check_depth() -> None:
            self._check_depth(wishes.queue_limit)
            self._check_own_depth(caller)

        check_depth()
        if disk_problem(self._settings):
            raise _refusal(503, "The server is low on disk space")
        self._check_rate(caller)
        now = self._clock()
        job = await self._store.insert(
            Job(
                request_id=str(uuid.uuid4()),
                endpoint_id=endpoint.id,
                owner=caller.owner,
                origin=origin,
                # ASCII, so that lone surrogates survive the way through UTF-8.
                input=json.dumps(body, ensure_ascii=True),
                created_at=now,
                priority=wishes.priority,
                needs=need_of(
                    endpoint,
                    body,
                    origin,
                    self._own_names,
                    expands_elsewhere=self._settings.expansion_url is not None,
                ),
                start_by=now + wishes.start_seconds if wishes.start_seconds else None,
                no_retry=wishes.no_retry,
                keep_payload=wishes.keep_payload,
                file_seconds=wishes.file_seconds,
                file_acl=wishes.file_acl,
                webhook_url=wishes.webhook_url,
            ),
            check_depth,  # again: many may have passed above before the first of them counted
        )
        if self._settings.log_prompts:
            log.info("accepted", request_id=job.request_id, prompt=prompt_in(body))
        self._on_accepted(job)
        return job

    def _check_depth(self, asked_limit: int | None) -> None:
        waiting = len(self._store.backlog)
        if waiting >= self._settings.queue_limit:
            raise _refusal(429, "The queue is full")
        if asked_limit is not None and waiting > asked_limit:
            raise _refusal(429, f"The queue is longer than {asked_limit}")

    def _check_own_depth(self, caller: Caller) -> None:
        limit = caller.limits.queued_jobs
        if limit is not None and self._store.backlog.count_of(caller.owner) >= limit:
            raise _refusal(429, f"This key has {limit} requests in the queue and may have no more")

    def _check_rate(self, caller: Caller) -> None:
        per_minute = caller.limits.requests_per_minute
        if per_minute is None:
            return
        seconds = self._requests.take(caller.owner, per_minute)
        if seconds:
            # fal's own word for one caller who asks too much at a time.
            raise _refusal(
                429,
                f"This key may send {per_minute} requests a minute",
                "concurrent_requests_limit",
                math.ceil(seconds),
            )


def disk_problem(settings: Settings) -> str | None:
    """Say that the disk is too full for new requests, or None.

    The reserve is for those already accepted: their results and the changes of their state.
    """
    folder: Path = settings.data_dir
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes >= settings.disk_reserve_bytes:
        return None
    return f"disk: {free_bytes} bytes free, {settings.disk_reserve_bytes} wanted"


def _refusal(
    status: int,
    detail: str,
    error_type: str = "queue_full",
    retry_after_seconds: int = RETRY_AFTER_SECONDS,
) -> RequestError:
    headers = {"retry-after": str(retry_after_seconds), "x-fal-needs-retry": "1"}
    return RequestError(status, detail, error_type if status == 429 else None, headers)
