"""The queue: submit, status, result, cancel (https://queue.fal.run).

Requests are kept under the application, `owner/alias`, but documents list the full endpoint id
in every path, so each route takes both.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.admission import Admission
from server.dispatcher import Dispatcher
from server.errors import RequestError, UnknownRequestError
from server.events import Events
from server.jobs import IllegalTransitionError, Job, JobStatus
from server.routes.answers import KEEP_ALIVE, AsciiJSONResponse, EventStream, event, read_json
from server.routes.auth import caller_of
from server.routes.doors import REQUEST_ID_HEADER, Door, door_of
from server.routes.wishes import read_wishes
from server.schemas import CancelAnswer, LogEntry, QueueStatus
from server.store import Store

TRUE_WORDS = ("1", "true")
POSITION_SECONDS = 2.0
"""How often a status stream looks whether the request moved up in the queue."""


class QueueRoutes:
    """The routes over the given parts; `router` holds them."""

    def __init__(
        self,
        store: Store,
        admission: Admission,
        dispatcher: Dispatcher,
        events: Events,
        body_limit_bytes: int,
    ) -> None:
        self._store = store
        self._admission = admission
        self._dispatcher = dispatcher
        self._events = events
        self._body_limit_bytes = body_limit_bytes
        self.router = APIRouter(prefix="/queue", include_in_schema=False)
        kept = "/{app_path:path}/requests/{request_id}"
        self.router.add_api_route(f"{kept}/status", self.status, methods=["GET"])
        self.router.add_api_route(f"{kept}/status/stream", self.stream_status, methods=["GET"])
        self.router.add_api_route(f"{kept}/cancel", self.cancel, methods=["PUT"])
        self.router.add_api_route(f"{kept}/response", self.result, methods=["GET"])
        self.router.add_api_route(kept, self.result, methods=["GET"])
        self.router.add_api_route("/{endpoint_id:path}", self.submit, methods=["POST"])

    async def submit(self, request: Request, endpoint_id: str) -> Response:
        """Accept a request. Its input is validated by the job, not here, as on fal."""
        endpoint = self._admission.find_endpoint(endpoint_id)
        door = door_of(request)
        body = await read_json(request, self._body_limit_bytes)
        job = await self._admission.accept(
            caller_of(request), endpoint, body, door.files_origin, read_wishes(request)
        )
        return _answer(job.request_id, self._describe(job, door), 200)

    async def status(
        self,
        request: Request,
        app_path: str,
        request_id: str,
        logs: Annotated[str, Query()] = "0",
    ) -> Response:
        """Answer where the request is: 202 until it is COMPLETED, then 200."""
        job = await self._find(request, app_path, request_id)
        lines = self._read_log(job) if logs.lower() in TRUE_WORDS else None
        body = self._describe(job, door_of(request), lines)
        return _answer(request_id, body, 200 if job.outcome else 202)

    async def stream_status(
        self,
        request: Request,
        app_path: str,
        request_id: str,
        logs: Annotated[str, Query()] = "0",
    ) -> Response:
        """Send the status as server-sent events, one for each change, until it is COMPLETED."""
        job = await self._find(request, app_path, request_id)
        events = self._stream(job, door_of(request), logs.lower() in TRUE_WORDS)
        return EventStream(events, {REQUEST_ID_HEADER: request_id})

    async def _stream(self, job: Job, door: Door, with_logs: bool) -> AsyncGenerator[str]:
        """Yield events. Log lines go out once each: the client collects them itself."""
        sent_lines, attempt, previous = 0, job.attempts, None
        with self._events.watch(job.request_id) as changed:
            changed.set()
            while True:
                if changed.is_set():
                    changed.clear()
                    found = await self._store.get(job.request_id)
                    if found is None:
                        return
                    job = found
                if job.attempts != attempt:
                    sent_lines, attempt = 0, job.attempts
                lines = self._read_log(job)[sent_lines:] if with_logs else None
                sent_lines += len(lines or ())
                body = self._describe(job, door, lines)
                state = {**body, "logs": None}
                if lines or state != previous:
                    yield event(body)
                previous = state
                if job.outcome or self._events.closed:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), POSITION_SECONDS)
                except TimeoutError:
                    yield KEEP_ALIVE

    def _describe(
        self, job: Job, door: Door, lines: list[LogEntry] | None = None
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {**_urls(job, door), "status": job.status.value}
        fields |= {"logs": lines, "metrics": {}}
        if job.status is JobStatus.IN_QUEUE:
            fields["queue_position"] = self._store.backlog.count_ahead(job)
        elif job.outcome:
            if job.outcome.inference_seconds is not None:
                fields["metrics"] = {"inference_time": job.outcome.inference_seconds}
            if job.outcome.error_type:
                fields["error"] = json.loads(job.outcome.body)["detail"]
                fields["error_type"] = job.outcome.error_type
        return QueueStatus(**fields).model_dump(exclude_unset=True)

    async def result(self, request: Request, app_path: str, request_id: str) -> Response:
        """Replay the outcome, success or error; 400 while there is none."""
        job = await self._find(request, app_path, request_id)
        if job.outcome is None:
            raise RequestError(
                400, "Request is still in progress", headers={REQUEST_ID_HEADER: request_id}
            )
        return replay(job)

    async def cancel(self, request: Request, app_path: str, request_id: str) -> Response:
        """Cancel: 200 when it left the queue, 202 when it will stop, 400 when it is over."""
        await self._find(request, app_path, request_id)
        try:
            job = await self._dispatcher.cancel(request_id)
        except IllegalTransitionError:
            return _answer(request_id, {"status": "ALREADY_COMPLETED"}, 400)
        if job.outcome:
            return _answer(request_id, CancelAnswer(status="OK").model_dump(), 200)
        body = CancelAnswer(status="CANCELLATION_REQUESTED").model_dump()
        return _answer(request_id, body, 202)

    async def _find(self, request: Request, app_path: str, request_id: str) -> Job:
        """Return the caller's job; another's looks as if it did not exist."""
        owner = caller_of(request).owner
        job = await self._store.get(request_id)
        if job is None or job.owner != owner or not _belongs(job, app_path):
            raise UnknownRequestError
        return job

    def _read_log(self, job: Job) -> list[LogEntry]:
        if job.outcome:
            return [LogEntry(**line) for line in json.loads(job.outcome.logs)]
        return self._events.read_log(job.request_id)


def replay(job: Job) -> Response:
    """Answer with the outcome of a completed job, byte for byte the same every time."""
    outcome = job.outcome
    if outcome is None:
        raise ValueError(f"{job.request_id} is not completed")
    headers = {REQUEST_ID_HEADER: job.request_id}
    if outcome.applied:
        headers["x-flux2-settings"] = outcome.applied
    if outcome.http_status == 422:
        headers |= {"x-fal-billable-units": "0", "x-fal-needs-retry": "false"}
    if outcome.error_type:
        headers["x-fal-error-type"] = outcome.error_type
        if outcome.error_type == "request_timeout":
            # Says that the caller's own limit ended it, so that clients do not try again.
            headers["x-fal-request-timeout-type"] = "user"
    return Response(
        outcome.body,
        status_code=outcome.http_status,
        media_type="application/json",
        headers=headers,
    )


def _belongs(job: Job, app_path: str) -> bool:
    return app_path == job.app_id or app_path.startswith(f"{job.app_id}/")


def _urls(job: Job, door: Door) -> dict[str, Any]:
    url = f"{door.queue_url}/{job.app_id}/requests/{job.request_id}"
    return {
        "request_id": job.request_id,
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
    }


def _answer(request_id: str, body: dict[str, Any], code: int) -> Response:
    return AsciiJSONResponse(body, status_code=code, headers={REQUEST_ID_HEADER: request_id})
