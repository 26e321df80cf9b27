"""Uploads: from the bytes of a request to a stored file with its record, or to nothing at all.

A file comes whole or in parts. Until its last byte is synced and its record committed it has no
name that anybody could ask for; what is unfinished when the server stops is swept at its start.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.clock import Clock
from server.errors import RequestError
from server.files import Draft, FileStore, new_name
from server.intake import RETRY_AFTER_SECONDS, Body, Incoming, Intake, on_disk, too_large
from server.jobs import StoredFile
from server.keys import Caller
from server.lifecycle import Lifecycle
from server.media import HEAD_BYTES, suffix_for, type_of
from server.settings import Settings
from server.store import Store, StoreUnavailableError
from server.store.usage import disk_bytes
from server.tickets import Ticket

TICKET_SECONDS = 3600.0
"""How long an upload may take from its announcement to its last part."""

MAX_PARTS = 1000
MAX_OPEN_PER_OWNER = 16
"""What one key may have under way in parts: their list is in memory."""


@dataclass(slots=True)
class _Multipart:
    """An upload in parts that is under way; `lock` is held while it is put together."""

    ticket: Ticket
    parts: dict[int, Incoming] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Uploads:
    """Takes what comes under a ticket. All refusals are `RequestError`s in fal's shape."""

    def __init__(self, settings: Settings, store: Store, files: FileStore, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._files = files
        self._clock = clock
        self._intake = Intake(settings, files, store.usage)
        self._busy: set[str] = set()
        self._open: dict[str, _Multipart] = {}

    def announce(
        self, caller: Caller, announced: str, lifecycle: Lifecycle, *, in_parts: bool
    ) -> Ticket:
        """Return a ticket for a new file of the caller's.

        `announced` is its content type as its sender has it, which only chooses the suffix. The
        ticket ends before the file can, so that no name is ever used twice.
        """
        seconds = self._settings.upload_seconds if lifecycle.seconds is None else lifecycle.seconds
        return Ticket(
            name=new_name(suffix_for(announced)),
            owner=caller.owner,
            in_parts=in_parts,
            seconds=seconds,
            acl=lifecycle.acl,
            expires_at=self._clock() + min(TICKET_SECONDS, seconds),
        )

    async def receive(self, ticket: Ticket, caller: Caller, body: Body) -> None:
        """Store a whole file."""
        if ticket.in_parts:
            raise unknown_upload()
        if ticket.name in self._busy:
            raise _used()
        self._busy.add(ticket.name)
        try:
            await self._check_unused(ticket)
            incoming = await self._intake.take(ticket.name, caller, body)
            try:
                await self._keep(ticket, incoming.draft, incoming.head)
            except BaseException:
                await incoming.discard()
                raise
        finally:
            self._busy.discard(ticket.name)

    async def receive_part(self, ticket: Ticket, caller: Caller, number: int, body: Body) -> str:
        """Store part `number` of a file, in place of an earlier one, and return its etag."""
        if not 1 <= number <= MAX_PARTS:
            raise _bad_part(f"Part numbers are from 1 to {MAX_PARTS}")
        multipart = await self._multipart(ticket)
        incoming = await self._intake.take(ticket.name, caller, body)
        try:
            await on_disk(incoming.draft.close)
            replaced = self._add_part(multipart, number, incoming)
        except BaseException:
            await incoming.discard()
            raise
        if replaced:
            await replaced.discard()
        return incoming.etag

    async def complete(self, ticket: Ticket, listed: Sequence[tuple[int, str]]) -> None:
        """Make the file of its listed parts, each a number and an etag, in order of the numbers.

        Asked again, it stays done: an answer may have been lost on its way.
        """
        multipart = self._open.get(ticket.name)
        if multipart is None:
            if await self._store.get_file(ticket.name):
                return
            raise unknown_upload()
        async with multipart.lock:
            if self._open.get(ticket.name) is multipart:
                parts = _choose(multipart.parts, listed)
                await self._join(ticket, parts)
                await self._drop(multipart)
                return
        await self.complete(ticket, listed)

    async def sweep(self) -> None:
        """Drop what was begun in parts and not completed in its time."""
        now = self._clock()
        for multipart in list(self._open.values()):
            if multipart.ticket.expires_at <= now and not multipart.lock.locked():
                await self._drop(multipart)

    async def keep_swept(self, every_seconds: float) -> None:
        """Sweep for as long as the server runs."""
        while True:
            await asyncio.sleep(every_seconds)
            await self.sweep()

    async def _keep(self, ticket: Ticket, draft: Draft, head: bytes) -> None:
        """Give the file its name and its record: file first, row second."""
        await on_disk(draft.keep)
        expires_at = None if math.isinf(ticket.seconds) else self._clock() + ticket.seconds
        file = StoredFile(
            name=ticket.name,
            content_type=type_of(head),
            size_bytes=draft.size_bytes,
            owner=ticket.owner,
            acl=ticket.acl,
            expires_at=expires_at,
        )
        try:
            await self._store.insert_upload(file)
        except StoreUnavailableError:
            await on_disk(self._files.delete, ticket.name)
            raise

    async def _check_unused(self, ticket: Ticket) -> None:
        if await self._store.get_file(ticket.name):
            raise _used()

    async def _multipart(self, ticket: Ticket) -> _Multipart:
        if not ticket.in_parts:
            raise unknown_upload()
        if ticket.name not in self._open:
            await self._check_unused(ticket)
        if ticket.name not in self._open:  # still: another part may have come meanwhile
            owners = [other.ticket.owner for other in self._open.values()]
            if owners.count(ticket.owner) >= MAX_OPEN_PER_OWNER:
                raise RequestError(
                    429,
                    f"At most {MAX_OPEN_PER_OWNER} uploads in parts may be under way",
                    headers={"retry-after": str(RETRY_AFTER_SECONDS)},
                )
            self._open[ticket.name] = _Multipart(ticket)
        return self._open[ticket.name]

    def _add_part(self, multipart: _Multipart, number: int, incoming: Incoming) -> Incoming | None:
        """Note a part that is on the disk, and return the one in whose place it is."""
        if self._open.get(multipart.ticket.name) is not multipart or multipart.lock.locked():
            raise unknown_upload()
        limit = self._settings.multipart_limit_bytes
        others = (part for other, part in multipart.parts.items() if other != number)
        if sum(part.draft.size_bytes for part in others) + incoming.draft.size_bytes > limit:
            raise too_large(limit)
        replaced = multipart.parts.get(number)
        multipart.parts[number] = incoming
        return replaced

    async def _join(self, ticket: Ticket, parts: list[Incoming]) -> None:
        draft = await self._intake.draft(ticket.name)
        try:
            for part in parts:
                await self._intake.on_free_disk(draft.append, part.draft.temporary)
            head = b"".join(part.head for part in parts)[:HEAD_BYTES]
            await self._keep(ticket, draft, head)
        except BaseException:
            await asyncio.to_thread(draft.discard)
            raise
        # The parts are still charged for, and hold at least as many blocks.
        self._store.usage.add(ticket.owner, disk_bytes(draft.size_bytes))

    async def _drop(self, multipart: _Multipart) -> None:
        self._open.pop(multipart.ticket.name, None)
        for part in multipart.parts.values():
            await part.discard()


def unknown_upload() -> RequestError:
    """Make the error for an upload in parts that is not under way, or not the caller's."""
    return RequestError(404, "Upload not found")


def _choose(parts: dict[int, Incoming], listed: Sequence[tuple[int, str]]) -> list[Incoming]:
    """Return the listed parts in the order of their numbers."""
    chosen: dict[int, Incoming] = {}
    for number, etag in listed:
        part = parts.get(number)
        if part is None or part.etag != etag.strip('"'):
            raise _bad_part(f"Part {number} was not uploaded, or its etag is another")
        if number in chosen:
            raise _bad_part(f"Part {number} is listed twice")
        chosen[number] = part
    if not chosen:
        raise _bad_part("No parts are listed")
    return [chosen[number] for number in sorted(chosen)]


def _bad_part(detail: str) -> RequestError:
    return RequestError(400, detail, "bad_request")


def _used() -> RequestError:
    return RequestError(403, "This upload was used already")
