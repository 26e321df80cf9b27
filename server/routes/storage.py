"""Stored files, served to whoever knows their name."""

import structlog
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from server.errors import RequestError
from server.files import URL_PREFIX, FileStore
from server.lifecycle import may_read
from server.metrics import Metrics
from server.routes.auth import caller_or_none
from server.store import Store

log = structlog.get_logger(__name__)

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "private, max-age=31536000, immutable",
}
"""A stored file never changes, and must never run as a page."""


def make_router(store: Store, files: FileStore, metrics: Metrics) -> APIRouter:
    """Make the route over the given parts."""
    router = APIRouter(include_in_schema=False)

    async def download(request: Request, name: str) -> Response:
        record = await store.get_file(name)
        path = files.find(name)
        caller = caller_or_none(request) if record and record.acl else None
        reader = caller.owner if caller else None
        if record is None or not may_read(record.acl, record.owner, reader):
            raise RequestError(404, "File not found")
        if path is None or path.stat().st_size != record.size_bytes:
            log.error("a stored file is missing or changed", name=name)
            metrics.file_missing()
            raise RequestError(410, "The file is gone from this server's disk")
        return FileResponse(path, media_type=record.content_type, headers=SAFE_HEADERS)

    router.add_api_route(f"{URL_PREFIX}{{name}}", download, methods=["GET", "HEAD"])
    return router
