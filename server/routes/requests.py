"""What a key has sent, to be seen and erased by that key alone.

The form is that of fal's platform interface, `/v1/models/requests/...` on https://api.fal.ai.
"""

import asyncio
import base64
import binascii
import json
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from server.clock import Clock
from server.errors import RequestError, UnknownRequestError
from server.files import URL_PREFIX, FileStore
from server.jobs import IllegalTransitionError
from server.routes.answers import AsciiJSONResponse
from server.routes.auth import caller_of
from server.routes.doors import door_of
from server.store import Store
from server.store.history import LAST, History, Place, Question, Record

log = structlog.get_logger(__name__)

MAX_ENDPOINTS = 50
DAY_SECONDS = 24 * 3600
ONE_REQUEST_SECONDS = 90 * DAY_SECONDS
"""How far back is looked without a `start`: a day, or this for one request by its id."""

STATUS_CODES = {"success": (200, 399), "user_error": (400, 499), "error": (500, 599)}


class Listing(BaseModel):
    """fal's parameters of the listing; endpoint ids may be repeated or separated by commas."""

    endpoint_id: list[str]
    limit: int = Field(50, ge=1, le=100)
    cursor: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    status: Literal["success", "error", "user_error"] | None = None
    request_id: str | None = None
    expand: list[Literal["payloads"]] = []
    sort_by: Literal["ended_at"] = "ended_at"


class RequestRoutes:
    """The routes over the given parts; `router` holds them."""

    def __init__(self, store: Store, files: FileStore, clock: Clock) -> None:
        self._store = store
        self._history = History(store)
        self._files = files
        self._clock = clock
        self.router = APIRouter(prefix="/v1/models/requests", include_in_schema=False)
        self.router.add_api_route("/by-endpoint", self.list_completed, methods=["GET"])
        self.router.add_api_route("/{request_id}/payloads", self.erase, methods=["DELETE"])

    async def list_completed(
        self,
        request: Request,
        asked: Annotated[Listing, Query()],
    ) -> Response:
        """List the caller's completed requests of some endpoints, the newest first."""
        reach_seconds = ONE_REQUEST_SECONDS if asked.request_id else DAY_SECONDS
        lowest, highest = STATUS_CODES[asked.status] if asked.status else (0, 999)
        question = Question(
            owner=caller_of(request).owner,
            endpoint_ids=_endpoint_ids(asked.endpoint_id),
            start=_seconds(asked.start) if asked.start else self._clock() - reach_seconds,
            end=_seconds(asked.end) if asked.end else math.inf,
            lowest=lowest,
            highest=highest,
            request_id=asked.request_id,
            with_payloads=bool(asked.expand),
        )
        place = _read_cursor(asked.cursor)
        records, following = await self._history.page(question, place, asked.limit)
        items = await asyncio.to_thread(lambda: [_describe(record) for record in records])
        body = {
            "items": items,
            "next_cursor": _write_cursor(following) if following else None,
            "has_more": following is not None,
        }
        return AsciiJSONResponse(body)

    async def erase(self, request: Request, request_id: str) -> Response:
        """Erase a completed request: its input, its result, its webhook and its files."""
        try:
            names = await self._store.erase_request(request_id, caller_of(request).owner)
        except IllegalTransitionError:
            raise RequestError(400, "Request is still in progress") from None
        if names is None:
            raise UnknownRequestError
        origin = door_of(request).files_origin
        results = [
            {
                "link": f"{origin}{URL_PREFIX}{name}",
                "exception": await asyncio.to_thread(self._delete, name),
            }
            for name in names
        ]
        log.info("erased on request", request_id=request_id, files=len(names))
        return AsciiJSONResponse({"cdn_delete_results": results})

    def _delete(self, name: str) -> str | None:
        """Delete a file, or say that it was not: no row names it now, so nobody is served it."""
        try:
            self._files.delete(name)
        except OSError as error:
            log.error("an erased file cannot be deleted", name=name, reason=str(error))
            return "The disk refused; the file is not served any more"
        return None


def _endpoint_ids(given: list[str]) -> list[str]:
    ids = [part.strip() for text in given for part in text.split(",") if part.strip()]
    if not 1 <= len(ids) <= MAX_ENDPOINTS:
        raise RequestError(400, f"endpoint_id must name 1 to {MAX_ENDPOINTS} endpoints")
    return ids


def _describe(record: Record) -> dict[str, Any]:
    item: dict[str, Any] = {
        "request_id": record.request_id,
        "endpoint_id": record.endpoint_id,
        "started_at": None if record.started_at is None else _iso(record.started_at),
        "sent_at": _iso(record.created_at),
        "ended_at": _iso(record.completed_at),
        "status_code": record.http_status,
        "duration": round(record.completed_at - record.created_at, 3),
    }
    if record.input is not None and record.result is not None:
        item["json_input"] = _read_json(record.input)
        item["json_output"] = _read_json(record.result)
    return item


def _read_json(text: str) -> Any:
    """Read JSON text; numbers that JSON cannot carry out again, such as 1e999, become null."""
    return json.loads(text, parse_constant=lambda _: None)


def _iso(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(moment: datetime) -> float:
    """Return seconds since 1970; without a zone it is UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _write_cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode("ascii")).decode("ascii")


def _read_cursor(cursor: str | None) -> Place:
    if cursor is None:
        return LAST
    try:
        seconds, seq = json.loads(base64.b64decode(cursor, b"-_", validate=True))
        place = float(seconds), int(seq)
    except (binascii.Error, ValueError, TypeError, OverflowError, RecursionError):
        raise RequestError(400, "cursor is not one of this server's") from None
    if not 0 <= place[1] <= LAST[1]:
        raise RequestError(400, "cursor is not one of this server's")
    return place
