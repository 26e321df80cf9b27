"""The queue: submit, status, result, cancel (https://queue.fal.run).

Requests are kept under the application, `owner/alias`, but documents list the full endpoint id
in every path, so each route takes both.
"""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.admission import Admission
from server.catalogue import find_endpoint
from server.dispatcher import Dispatcher
from server.errors import RequestError, UnknownRequestError
from server.events import Events
from server.jobs import IllegalTransitionError, Job, JobStatus
from server.routes.answers import AsciiJSONResponse, read_json
from server.routes.doors import REQUEST_ID_HEADER, Door, door_of
from server.schemas import CancelAnswer, LogEntry, QueueStatus
from server.store import Store

TRUE_WORDS = ("1", "true")


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
        self.router.add_api_route(f"{kept}/cancel", self.cancel, methods=["PUT"])
        self.router.add_api_route(f"{kept}/response", self.result, methods=["GET"])
        self.router.add_api_route(kept, self.result, methods=["GET"])
        self.router.add_api_route("/{endpoint_id:path}", self.submit, methods=["POST"])

    async def submit(self, request: Request, endpoint_id: str) -> Response:
        """Accept a request. Its input is validated by the job, not here, as on fal."""
        endpoint = find_endpoint(endpoint_id)
        door = door_of(request)
        body = await read_json(request, self._body_limit_bytes)
        job = await self._admission.accept(endpoint, body, door.origin)
        status = QueueStatus(
            **_urls(job, door),
            status=JobStatus.IN_QUEUE.value,
            queue_position=await self._store.count_ahead(job.request_id),
            logs=None,
            metrics={},
        )
        return _answer(job.request_id, status.model_dump(exclude_unset=True), 200)

    async def status(
        self,
        request: Request,
        app_path: str,
        request_id: str,
        logs: Annotated[str, Query()] = "0",
    ) -> Response:
        """Answer where the request is: 202 until it is COMPLETED, then 200."""
        job = await self._find(app_path, request_id)
        fields = {**_urls(job, door_of(request)), "status": job.status.value}
        fields["logs"] = self._read_log(job) if logs.lower() in TRUE_WORDS else None
        fields["metrics"] = {}
        if job.status is JobStatus.IN_QUEUE:
            fields["queue_position"] = await self._store.count_ahead(request_id)
        elif job.outcome:
            if job.outcome.inference_seconds is not None:
                fields["metrics"] = {"inference_time": job.outcome.inference_seconds}
            if job.outcome.error_type:
                fields["error"] = json.loads(job.outcome.body)["detail"]
                fields["error_type"] = job.outcome.error_type
        body = QueueStatus(**fields).model_dump(exclude_unset=True)
        return _answer(request_id, body, 200 if job.outcome else 202)

    async def result(self, app_path: str, request_id: str) -> Response:
        """Replay the outcome, success or error; 400 while there is none."""
        job = await self._find(app_path, request_id)
        if job.outcome is None:
            raise RequestError(
                400, "Request is still in progress", headers={REQUEST_ID_HEADER: request_id}
            )
        return replay(job)

    async def cancel(self, app_path: str, request_id: str) -> Response:
        """Cancel: 200 when it left the queue, 202 when it will stop, 400 when it is over."""
        await self._find(app_path, request_id)
        try:
            job = await self._dispatcher.cancel(request_id)
        except IllegalTransitionError:
            return _answer(request_id, {"status": "ALREADY_COMPLETED"}, 400)
        if job.outcome:
            return _answer(request_id, CancelAnswer(status="OK").model_dump(), 200)
        body = CancelAnswer(status="CANCELLATION_REQUESTED").model_dump()
        return _answer(request_id, body, 202)

    async def _find(self, app_path: str, request_id: str) -> Job:
        job = await self._store.get(request_id)
        if job is None or not _belongs(job, app_path):
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
    if outcome.http_status == 422:
        headers |= {"x-fal-billable-units": "0", "x-fal-needs-retry": "false"}
    if outcome.error_type:
        headers["x-fal-error-type"] = outcome.error_type
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
