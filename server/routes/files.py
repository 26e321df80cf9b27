"""Stored files, served to whoever knows their name and may read them."""

import asyncio
import os
from pathlib import Path

import structlog
from fastapi import APIRouter, Request
from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from server.clock import Clock
from server.errors import RequestError
from server.files import URL_PREFIX, FileStore
from server.jobs import StoredFile
from server.lifecycle import may_read
from server.media import SHOWN_TYPES
from server.metrics import Metrics
from server.routes.answers import error_response
from server.routes.auth import caller_or_none
from server.store import Store

log = structlog.get_logger(__name__)

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
}
"""A file must never run as a page or a script, and any page may show a picture."""

LONGEST_CACHE_SECONDS = 365 * 24 * 3600


class StoredFileResponse(FileResponse):
    """A file with byte ranges; the answers that refuse a range are as safe as the file's own.

    More than a hundred ranges are answered with the whole file (CVE-2025-62727).
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or the part of it that was asked for."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SAFE_HEADERS)
            await send(message)

        try:
            descriptor = await asyncio.to_thread(os.open, self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            await error_response(_unknown_file())(scope, receive, send)  # it expired just now
            return
        # Opened before a length is promised: a file that expires meanwhile is sent to its end.
        self.path = f"/proc/self/fd/{descriptor}"
        try:
            await super().__call__(scope, receive, send_safely)
        finally:
            os.close(descriptor)


def make_router(store: Store, files: FileStore, metrics: Metrics, clock: Clock) -> APIRouter:
    """Make the route over the given parts."""
    router = APIRouter(include_in_schema=False)

    async def download(request: Request, name: str) -> Response:
        record = await store.get_file(name)
        caller = caller_or_none(request) if record and record.acl else None
        reader = caller.owner if caller else None
        if record is None or not may_read(record.acl, record.owner, reader):
            raise _unknown_file()
        headers = _headers(record, clock())
        if _is_known(request.headers.get("if-none-match"), headers["etag"]):
            return Response(status_code=304, headers=headers)
        found = await asyncio.to_thread(_look_at, files, record)
        if found is None:
            log.error("a stored file is missing or changed", name=name)
            metrics.file_missing()
            raise RequestError(410, "The file is gone from this server's disk")
        path, stat = found
        return StoredFileResponse(
            path, media_type=record.content_type, headers=headers, stat_result=stat
        )

    router.add_api_route(f"{URL_PREFIX}{{name}}", download, methods=["GET", "HEAD"])
    return router


def _unknown_file() -> RequestError:
    return RequestError(404, "File not found")


def _headers(record: StoredFile, now: float) -> dict[str, str]:
    """Return what every answer about the file carries. A file never changes under its name."""
    place = "inline" if record.content_type in SHOWN_TYPES else "attachment"
    headers = {**SAFE_HEADERS, "content-disposition": place, "etag": f'"{record.name}"'}
    if record.acl:
        # Kept, but asked for again each time: it is not for everybody who shares the cache.
        return {**headers, "cache-control": "private, no-cache", "vary": "authorization"}
    left = LONGEST_CACHE_SECONDS if record.expires_at is None else int(record.expires_at - now)
    age = max(0, min(left, LONGEST_CACHE_SECONDS))
    return {**headers, "cache-control": f"private, max-age={age}, immutable"}


def _is_known(if_none_match: str | None, etag: str) -> bool:
    """Say whether the caller has the file already (RFC 9110, 13.1.2: the comparison is weak)."""
    tags = (tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(","))
    return any(tag in (etag, "*") for tag in tags)


def _look_at(files: FileStore, record: StoredFile) -> tuple[Path, os.stat_result] | None:
    """Return where the file lies, or None when it is not what was stored."""
    path = files.find(record.name)
    if path is None:
        return None
    stat = path.stat()
    return (path, stat) if stat.st_size == record.size_bytes else None
