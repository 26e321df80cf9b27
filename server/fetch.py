"""Fetch what an image URL leads to: public places or listed ones, in bounded time and space.

Whoever sent the URL learns from an error only that it did not work. Whether a port is closed, a
name exists or a target is refused is for the operator's log: the answer would be a scanner of the
network behind this server.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import httpx2
import structlog

from server.outbound import Answer, Outbound, OutboundError, read_url
from server.targets import RefusedTargetError

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 3.0
SILENCE_SECONDS = 5.0
"""How long the first byte of an answer may take, and each further one."""

FAILURE_MESSAGE = (
    "Failed to download the file. Please check if the URL is accessible and try again."
)
FAILURE_SECONDS = 1.0
"""No failed download is told sooner, so that refused, unknown and closed take the same time."""

URL_CHARACTERS = 2048
"""As on fal."""

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)

PIECE_BYTES = 64 * 1024
"""Most that is decompressed at once, however well it was compressed."""

COMPRESSIONS = ("gzip", "x-gzip", "deflate")
"""What some servers send although they were asked for the file as it is."""

HEADERS = {
    "user-agent": f"Mozilla/5.0 (compatible; flux2-serve/{version('flux2-serve')})",
    "accept": "image/*,*/*;q=0.8",
}


class FetchError(Exception):
    """The file could not be had; `error_type`, the message and `ctx` are fal's words for why."""

    def __init__(self, error_type: str, message: str, ctx: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.ctx = dict(ctx) if ctx else None


class _TooLargeError(Exception):
    """The file is larger than the limit."""


class Fetcher:
    """Downloads files through `outbound`, each within `limit_bytes` and `seconds`."""

    def __init__(
        self,
        outbound: Outbound,
        limit_bytes: int,
        seconds: float,
        failure_seconds: float = FAILURE_SECONDS,
    ) -> None:
        self._outbound = outbound
        self._limit_bytes = limit_bytes
        self._seconds = seconds
        self._failure_seconds = failure_seconds

    async def fetch(self, url: str, target: Path) -> None:
        """Write the file behind `url`, decompressed, to `target`; nothing is left on failure.

        Raises `FetchError`, and OSError when the disk takes no more.
        """
        begun = time.monotonic()
        host = None
        try:
            if len(url) > URL_CHARACTERS:
                raise RefusedTargetError("longer than a URL may be")
            parsed = read_url(url)
            host = parsed.raw_host.decode("ascii")
            async with asyncio.timeout(self._seconds):
                await self._follow(parsed, target)
        except _TooLargeError as error:
            ctx = {"max_size": self._limit_bytes}
            raise FetchError("file_too_large", "File too large", ctx) from error
        except (RefusedTargetError, OutboundError, TimeoutError) as error:
            why = str(error) or f"took longer than {self._seconds:g} seconds"
            log.info("image URL not fetched", host=host, reason=why)
            await asyncio.sleep(begun + self._failure_seconds - time.monotonic())
            raise FetchError("file_download_error", FAILURE_MESSAGE) from error

    async def close(self) -> None:
        """Let go of the connections."""
        await self._outbound.close()

    async def _follow(self, url: httpx2.URL, target: Path) -> None:
        """Go where `url` leads, by way of a few redirects; each passes the same gate."""
        for _ in range(1 + MAX_REDIRECTS):
            async with self._outbound.request(
                "GET",
                url,
                HEADERS,
                connect_seconds=CONNECT_SECONDS,
                silence_seconds=SILENCE_SECONDS,
            ) as answer:
                if answer.status not in REDIRECTS:
                    await self._save(answer, target)
                    return
                url = _next_url(url, answer)
        raise OutboundError(f"redirected more than {MAX_REDIRECTS} times")

    async def _save(self, answer: Answer, target: Path) -> None:
        if answer.status != 200:
            raise OutboundError(f"answered {answer.status}")
        compression = answer.headers.get("content-encoding", "").strip().lower() or "identity"
        length = answer.headers.get("content-length", "")
        if compression == "identity" and length.isdecimal() and int(length) > self._limit_bytes:
            raise _TooLargeError
        size = 0
        with _new_file(target) as file:
            async with contextlib.aclosing(_pieces(answer, compression)) as pieces:
                async for piece in pieces:
                    size += len(piece)
                    if size > self._limit_bytes:
                        raise _TooLargeError
                    await asyncio.to_thread(file.write, piece)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is there afterwards only if all went well."""
    try:
        with path.open("wb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _next_url(url: httpx2.URL, answer: Answer) -> httpx2.URL:
    location = answer.headers.get("location")
    if not location:
        raise OutboundError("redirected nowhere")
    following = read_url(location, url)
    if url.scheme == "https" and following.scheme != "https":
        raise RefusedTargetError("a redirect from https to http")
    return following


async def _pieces(answer: Answer, compression: str) -> AsyncGenerator[bytes]:
    """Yield the body of an answer as it was before compression, in small pieces."""
    async with contextlib.aclosing(answer.chunks()) as chunks:
        if compression == "identity":
            async for chunk in chunks:
                yield chunk
            return
        if compression not in COMPRESSIONS:
            raise OutboundError("compressed in a way that nobody asked for")
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its header
        async for chunk in chunks:
            for piece in _inflate(inflater, chunk):
                yield piece
            if inflater.eof:
                return
        raise OutboundError("ended in the middle of its compressed data")


def _inflate(inflater: "zlib._Decompress", chunk: bytes) -> Iterator[bytes]:
    piece = None
    while chunk or piece is None or len(piece) == PIECE_BYTES:
        try:
            piece = inflater.decompress(chunk, PIECE_BYTES)
        except zlib.error as error:
            raise OutboundError("compressed data that is none") from error
        yield piece
        chunk = inflater.unconsumed_tail
