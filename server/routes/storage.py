"""Stored files, served to whoever knows their name."""

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from server.errors import RequestError
from server.files import URL_PREFIX, FileStore
from server.store import Store

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "private, max-age=31536000, immutable",
}
"""A stored file never changes, and must never run as a page."""


def make_router(store: Store, files: FileStore) -> APIRouter:
    """Make the route over the given parts."""
    router = APIRouter(include_in_schema=False)

    async def download(name: str) -> Response:
        record = await store.get_file(name)
        path = files.find(name)
        if record is None or path is None:
            raise RequestError(404, "File not found")
        return FileResponse(path, media_type=record.content_type, headers=SAFE_HEADERS)

    router.add_api_route(f"{URL_PREFIX}{{name}}", download, methods=["GET", "HEAD"])
    return router
