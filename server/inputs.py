"""The prepare step: from what the caller sent to what a runner can open.

Runs after acceptance and before the GPU. Reference images become plain RGB files in a spool
folder of the request, so that the runner never meets a stranger's bytes.
"""

import asyncio
import base64
import binascii
import contextlib
import io
import shutil
from pathlib import Path

from server.errors import InputError, content_error
from server.files import FileStore, name_in_url
from server.images import ImageRefusedError
from server.references import decode
from server.settings import Settings

IMAGE_FIELD = "image_urls"


class InputPreparer:
    """Turns image URLs into checked local files."""

    def __init__(self, settings: Settings, files: FileStore) -> None:
        self._settings = settings
        self._files = files
        self._spool = settings.data_dir / "spool"

    def sweep(self) -> None:
        """Remove what a dead server left behind."""
        shutil.rmtree(self._spool, ignore_errors=True)

    async def prepare(self, request_id: str, image_urls: tuple[str, ...]) -> tuple[Path, ...]:
        """Write each reference image to the spool and return the paths, in order.

        Raises `InputError` whose `loc` names the index of the image that was refused, and OSError
        when the disk takes no more.
        """
        paths = []
        for index, url in enumerate(image_urls):
            paths.append(await asyncio.to_thread(self._prepare_one, request_id, index, url))
        return tuple(paths)

    def release(self, request_id: str) -> None:
        """Delete the request's spooled files."""
        shutil.rmtree(self._spool / request_id, ignore_errors=True)

    def _prepare_one(self, request_id: str, index: int, url: str) -> Path:
        loc = (IMAGE_FIELD, index)
        data = self._read(url, loc)
        try:
            image = decode(io.BytesIO(data), self._settings.reference_limit_pixels)
        except ImageRefusedError as error:
            raise content_error(
                error.error_type, str(error), loc=loc, value=url, ctx=error.ctx
            ) from error
        folder = self._spool / request_id
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{index}.png"
        image.save(path, compress_level=0)  # it lives for seconds: spend no time on its size
        return path

    def _read(self, url: str, loc: tuple[str, int]) -> bytes:
        if url[:5].lower() == "data:":
            return self._read_data_uri(url, loc)
        name = name_in_url(url)
        path = self._files.find(name) if name else None
        if path:
            # A file that is gone or damaged is this request's trouble, not the storage's.
            with contextlib.suppress(OSError):
                return path.read_bytes()
        raise content_error(
            "file_download_error",
            "This server does not fetch image URLs yet. "
            "Send the image as a data URI, or the URL of one of this server's own files.",
            loc=loc,
            value=url,
        )

    def _read_data_uri(self, url: str, loc: tuple[str, int]) -> bytes:
        limit = self._settings.reference_limit_bytes
        header, _, payload = url.partition(",")
        if len(payload) > (limit + 2) // 3 * 4 + 4:
            raise _too_large(limit, loc, url)
        try:
            if not header.lower().endswith(";base64"):
                raise ValueError("only base64 data URIs are read")
            data = base64.b64decode(payload.strip(), validate=True)
        except (ValueError, binascii.Error) as error:
            raise content_error("image_load_error", "Image load error", loc=loc, value=url) from (
                error
            )
        if len(data) > limit:
            raise _too_large(limit, loc, url)
        return data


def _too_large(limit_bytes: int, loc: tuple[str, int], url: str) -> InputError:
    return content_error(
        "file_too_large", "File too large", loc=loc, value=url, ctx={"max_size": limit_bytes}
    )
