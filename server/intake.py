"""Bodies of uploads on their way to the disk: counted, charged for, and gone if they break off."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from server.admission import disk_problem
from server.errors import RequestError
from server.files import Draft, FileStore
from server.keys import Caller
from server.media import HEAD_BYTES
from server.quota import Charge, Quota
from server.settings import Settings
from server.store.usage import Usage

T = TypeVar("T")

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Body:
    """What is being sent: its chunks, and how much that is, if its sender says so beforehand."""

    chunks: AsyncIterator[bytes]
    announced_bytes: int = 0


@dataclass(slots=True)
class Incoming:
    """One body on the disk, with what it is charged for; not a stored file yet."""

    draft: Draft
    charge: Charge
    digest: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    head: bytes = b""

    @property
    def etag(self) -> str:
        """What tells these bytes from others."""
        return self.digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append; raises OSError when the disk takes no more."""
        self.draft.write(chunk)
        self.digest.update(chunk)
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + chunk)[:HEAD_BYTES]

    async def discard(self) -> None:
        """Drop it, and give back what was charged for it; twice is fine."""
        self.charge.release()
        await asyncio.to_thread(self.draft.discard)


class Intake:
    """Takes bodies in, a chunk of each in memory. All refusals are `RequestError`s."""

    def __init__(self, settings: Settings, files: FileStore, usage: Usage) -> None:
        self._settings = settings
        self._files = files
        self._quota = Quota(settings, usage)

    async def take(self, name: str, caller: Caller, body: Body) -> Incoming:
        """Write a body to the disk as it comes, for a file that will have this name.

        If anything goes wrong, nothing of it is left. Raises `RequestError` 403 for the quota, 413
        for the limit and 503 for the disk.
        """
        limit = self._settings.upload_limit_bytes
        if body.announced_bytes > limit:
            raise too_large(limit)
        charge = self._quota.open(caller)
        charge.grow(body.announced_bytes)
        try:
            incoming = Incoming(await self.draft(name), charge)
        except BaseException:
            charge.release()
            raise
        try:
            async for chunk in body.chunks:
                size_bytes = incoming.draft.size_bytes + len(chunk)
                if size_bytes > limit:
                    raise too_large(limit)
                charge.grow(size_bytes)
                await self.on_free_disk(incoming.write, chunk)
        except BaseException:
            await incoming.discard()
            raise
        return incoming

    async def draft(self, name: str) -> Draft:
        """Begin a file. Raises `RequestError` 503."""
        return await self.on_free_disk(self._files.draft, name)

    async def on_free_disk(self, work: Callable[..., T], *arguments: object) -> T:
        """Do file work that takes space, or raise `RequestError` 503 to leave the reserve alone."""

        def checked() -> T:
            if disk_problem(self._settings):
                raise _disk_refusal()
            return work(*arguments)

        return await on_disk(checked)


def too_large(limit_bytes: int) -> RequestError:
    """Make the error for a file above a limit."""
    return RequestError(413, f"The file exceeds {limit_bytes} bytes", "file_too_large")


async def on_disk(work: Callable[..., T], *arguments: object) -> T:
    """Do file work in a thread; a disk that refuses is a `RequestError` 503."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        log.error("an upload cannot be stored", reason=str(error))
        raise _disk_refusal() from error


def _disk_refusal() -> RequestError:
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
    return RequestError(503, "The server is low on disk space", headers=headers)
