"""Uploads: whole, in parts, or not at all."""

import asyncio
import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from server.errors import RequestError
from server.files import FileStore
from server.intake import Body
from server.jobs import StoredFile
from server.keys import Caller
from server.lifecycle import Lifecycle
from server.settings import Settings
from server.store import Store, StoreUnavailableError
from server.store.usage import BLOCK_BYTES
from server.tickets import Ticket
from server.uploads import MAX_OPEN_PER_OWNER, MAX_PARTS, TICKET_SECONDS, Uploads
from tests.server.conftest import MakeSettings

pytestmark = pytest.mark.anyio

ANN = Caller(owner="ann")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
LIMIT_BYTES = 4 * BLOCK_BYTES
MULTIPART_LIMIT_BYTES = 6 * BLOCK_BYTES
QUOTA_BYTES = 16 * BLOCK_BYTES
WAIT_SECONDS = 30


class Box:
    """Uploads over a real store and real files, at a time that the test sets."""

    def __init__(self, settings: Settings) -> None:
        self.now = 1_900_000_000.0
        self.settings = settings
        self.store = Store(settings.data_dir)
        self.files = FileStore(settings.data_dir / "files")
        self.uploads = Uploads(settings, self.store, self.files, lambda: self.now)

    def ticket(
        self, *, in_parts: bool = False, seconds: float | None = None, acl: str | None = None
    ) -> Ticket:
        """Announce a picture of Ann's."""
        lifecycle = Lifecycle(seconds, acl)
        return self.uploads.announce(ANN, "image/png", lifecycle, in_parts=in_parts)

    async def put(self, ticket: Ticket, *chunks: bytes) -> None:
        """Upload a whole file."""
        await self.uploads.receive(ticket, ANN, sent(*chunks))

    async def put_part(self, ticket: Ticket, number: int, *chunks: bytes) -> str:
        """Upload a part of a file and return its etag."""
        return await self.uploads.receive_part(ticket, ANN, number, sent(*chunks))

    async def stored(self, ticket: Ticket) -> tuple[StoredFile, bytes]:
        """Return the record and the bytes of an upload that is there."""
        record, path = await self.store.get_file(ticket.name), self.files.find(ticket.name)
        assert record is not None
        assert path is not None
        return record, path.read_bytes()

    def on_disk(self) -> list[Path]:
        """Return everything in the folder of files, finished or not."""
        return [path for path in (self.settings.data_dir / "files").rglob("*") if path.is_file()]

    async def check_nothing_is_left(self, ticket: Ticket) -> None:
        """Check that an upload left neither file nor record nor charge."""
        assert self.on_disk() == []
        assert await self.store.get_file(ticket.name) is None
        assert self.store.usage.total == 0


def sent(*chunks: bytes, announced: bool = False) -> Body:
    """Return a body as it comes from the network."""

    async def pieces() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return Body(pieces(), sum(map(len, chunks)) if announced else 0)


def broken_off(*chunks: bytes) -> Body:
    """Return the beginning of a body whose sender then goes away."""

    async def pieces() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
        raise ConnectionResetError

    return Body(pieces())


class Slow:
    """A body whose first bytes are there, and whose end comes when the test says so."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the data, and end later."""
        yield self._data
        self.begun.set()
        await self.go_on.wait()


@pytest.fixture
async def box(make_settings: MakeSettings) -> AsyncIterator[Box]:
    """Return such uploads, with limits of a few blocks."""
    box = Box(
        make_settings(
            upload_limit_bytes=LIMIT_BYTES,
            multipart_limit_bytes=MULTIPART_LIMIT_BYTES,
            upload_quota_bytes=QUOTA_BYTES,
            upload_seconds=7200,
            disk_reserve_bytes=0,
        )
    )
    await box.store.open()
    yield box
    await box.store.close()


@pytest.mark.parametrize(
    ("seconds", "expected"), [(None, 7200.0), (60.0, 60.0), (float("inf"), None)]
)
async def test_a_file_is_stored_as_what_it_is(
    box: Box, seconds: float | None, expected: float | None
) -> None:
    """Its type comes from its bytes, its life and its access list from its sender."""
    acl = '{"default":"forbid","rules":[]}'
    ticket = box.ticket(seconds=seconds, acl=acl)
    await box.put(ticket, b"Hel", b"lo")
    record, data = await box.stored(ticket)
    assert data == b"Hello"
    assert record == StoredFile(
        name=ticket.name,
        content_type="text/plain; charset=utf-8",
        size_bytes=5,
        owner="ann",
        acl=acl,
        expires_at=None if expected is None else box.now + expected,
    )
    assert ticket.name.endswith(".png")
    assert ticket.expires_at == box.now + min(TICKET_SECONDS, expected or TICKET_SECONDS)
    assert len(box.on_disk()) == 1
    assert box.store.usage.of("ann") == BLOCK_BYTES


async def test_a_picture_is_known_however_it_is_cut(box: Box) -> None:
    """The type is found when the first bytes come one at a time, or in parts."""
    whole, parts = box.ticket(), box.ticket(in_parts=True)
    await box.put(whole, *(PNG[index : index + 1] for index in range(len(PNG))))
    etags = [await box.put_part(parts, n + 1, PNG[n * 7 : n * 7 + 7]) for n in range(4)]
    await box.uploads.complete(parts, list(enumerate(etags, 1)))
    for ticket in (whole, parts):
        record, data = await box.stored(ticket)
        assert (record.content_type, data) == ("image/png", PNG)


async def test_an_empty_file_is_a_file(box: Box) -> None:
    """As with S3."""
    ticket = box.ticket()
    await box.put(ticket)
    record, data = await box.stored(ticket)
    assert (record.size_bytes, record.content_type, data) == (0, "application/octet-stream", b"")


async def test_a_ticket_is_good_for_one_file(box: Box) -> None:
    """Neither a second upload nor one at the same time changes what came first."""
    ticket = box.ticket()
    slow = Slow(b"one")
    first = asyncio.create_task(box.uploads.receive(ticket, ANN, Body(slow.chunks())))
    await slow.begun.wait()
    with pytest.raises(RequestError, match="used already"):
        await box.put(ticket, b"two")
    slow.go_on.set()
    await first
    with pytest.raises(RequestError, match="used already") as refused:
        await box.put(ticket, b"three")
    assert refused.value.status == 403
    assert (await box.stored(ticket))[1] == b"one"
    with pytest.raises(RequestError, match="not found"):
        await box.put_part(ticket, 1, b"four")
    with pytest.raises(RequestError, match="not found"):
        await box.put(box.ticket(in_parts=True), b"five")


async def test_the_limit_itself_fits_and_a_byte_more_does_not(box: Box) -> None:
    """What is too large leaves nothing, whole or as a part."""
    at_limit = [bytes(BLOCK_BYTES)] * 4
    for ticket in (box.ticket(), box.ticket(in_parts=True)):
        with pytest.raises(RequestError, match="exceeds 16384 bytes") as refused:
            await upload(box, ticket, *at_limit, b"x")
        assert (refused.value.status, refused.value.error_type) == (413, "file_too_large")
        await box.check_nothing_is_left(ticket)
    ticket = box.ticket()
    with pytest.raises(RequestError, match="exceeds 16384 bytes"):
        await box.uploads.receive(ticket, ANN, Body(sent().chunks, LIMIT_BYTES + 1))
    await box.put(ticket, *at_limit)
    assert (await box.stored(ticket))[0].size_bytes == LIMIT_BYTES


async def test_what_is_broken_off_leaves_nothing(box: Box) -> None:
    """Its ticket stays good, so that the sender can try again."""
    whole, parts = box.ticket(), box.ticket(in_parts=True)
    half = bytes(LIMIT_BYTES // 2)
    with pytest.raises(ConnectionResetError):
        await box.uploads.receive(whole, ANN, broken_off(half))
    await box.check_nothing_is_left(whole)
    with pytest.raises(ConnectionResetError):
        await box.uploads.receive_part(parts, ANN, 1, broken_off(half))
    await box.check_nothing_is_left(parts)
    await box.put(whole, half)
    await box.put_part(parts, 1, half)


@pytest.mark.parametrize("announced", [True, False])
async def test_several_cannot_pass_the_quota_together(box: Box, announced: bool) -> None:
    """Those that say how long they are have their place from the beginning, others as they come."""
    tickets = [box.ticket() for _ in range(6)]
    chunks = [bytes(BLOCK_BYTES)] * 4
    ends = await asyncio.gather(
        *(
            box.uploads.receive(ticket, ANN, sent(*chunks, announced=announced))
            for ticket in tickets
        ),
        return_exceptions=True,
    )
    stored = [ticket for ticket in tickets if await box.store.get_file(ticket.name)]
    assert len(stored) == 4 if announced else len(stored) <= 4
    refusals = [end for end in ends if end is not None]
    assert len(refusals) == 6 - len(stored)
    for refusal in refusals:
        assert isinstance(refusal, RequestError)
        assert refusal.error_type == "storage_quota_exceeded"
    assert box.store.usage.total == len(stored) * LIMIT_BYTES
    assert len(box.on_disk()) == len(stored)


@pytest.mark.parametrize("free_for", [0, 2])
async def test_a_disk_at_its_reserve_takes_no_more(
    box: Box, monkeypatch: pytest.MonkeyPatch, free_for: int
) -> None:
    """Neither at the beginning of a file nor in its middle."""
    checks = itertools.count()
    monkeypatch.setattr(
        "server.intake.disk_problem", lambda _: "full" if next(checks) >= free_for else None
    )
    ticket = box.ticket()
    with pytest.raises(RequestError, match="low on disk space") as refused:
        await box.put(ticket, b"one", b"two", b"three")
    assert refused.value.status == 503
    await box.check_nothing_is_left(ticket)


async def test_a_disk_or_database_that_refuses_leaves_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file comes before its record; without the record it goes again."""

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def unavailable(_file: StoredFile) -> None:
        raise StoreUnavailableError("database or disk is full")

    for target, fault in (("server.files.os.fsync", refuse), ("insert_upload", unavailable)):
        for ticket in (box.ticket(), box.ticket(in_parts=True)):
            await box.put(box.ticket(seconds=1), b"makes the folders")
            with monkeypatch.context() as patch:
                if target == "insert_upload":
                    patch.setattr(box.store, target, fault)
                else:
                    patch.setattr(target, fault)
                with pytest.raises(RequestError) as refused:
                    await upload(box, ticket, b"x")
            assert refused.value.status == 503
            assert await box.store.get_file(ticket.name) is None
            assert box.files.find(ticket.name) is None
            await upload(box, ticket, b"x")
            assert (await box.stored(ticket))[1] == b"x"
    assert len(box.on_disk()) == 8


async def upload(box: Box, ticket: Ticket, *chunks: bytes) -> None:
    """Upload under either kind of ticket."""
    if ticket.in_parts:
        etag = await box.put_part(ticket, 1, *chunks)
        await box.uploads.complete(ticket, [(1, etag)])
    else:
        await box.put(ticket, *chunks)


async def test_parts_come_in_any_order_and_again(box: Box) -> None:
    """The last of the same number counts, and only listed parts are used, by their numbers."""
    ticket = box.ticket(in_parts=True)
    numbers = (3, 1, 7, 2)
    etags = await asyncio.gather(*(box.put_part(ticket, n, b"%d," % n) for n in numbers))
    listed = dict(zip(numbers, etags, strict=True))
    replaced = await box.put_part(ticket, 2, b"two,")
    assert replaced != listed[2]
    assert await box.put_part(ticket, 1, b"1", b",") == listed[1]
    with pytest.raises(RequestError, match="etag is another"):
        await box.uploads.complete(ticket, list(listed.items()))
    del listed[7]
    listed[2] = f'"{replaced}"'
    await box.uploads.complete(ticket, list(listed.items()))
    assert (await box.stored(ticket))[1] == b"1,two,3,"
    assert len(box.on_disk()) == 1
    assert box.store.usage.total == BLOCK_BYTES


@pytest.mark.parametrize(
    ("listed", "text"),
    [
        (lambda _: [], "No parts are listed"),
        (lambda etag: [(1, etag), (1, etag)], "listed twice"),
        (lambda etag: [(1, etag), (2, etag)], "Part 2 was not uploaded"),
        (lambda _: [(1, "0" * 32)], "etag is another"),
    ],
)
async def test_a_wrong_list_of_parts_is_refused(
    box: Box, listed: Callable[[str], list[tuple[int, str]]], text: str
) -> None:
    """Nothing is stored then, and the parts wait for a right one."""
    ticket = box.ticket(in_parts=True)
    etag = await box.put_part(ticket, 1, b"one")
    with pytest.raises(RequestError, match=text) as refused:
        await box.uploads.complete(ticket, listed(etag))
    assert refused.value.status == 400
    assert await box.store.get_file(ticket.name) is None
    await box.uploads.complete(ticket, [(1, etag)])


@pytest.mark.parametrize("number", [0, -1, MAX_PARTS + 1])
async def test_part_numbers_are_bounded(box: Box, number: int) -> None:
    """The list of parts is in memory."""
    with pytest.raises(RequestError, match="Part numbers are from 1"):
        await box.put_part(box.ticket(in_parts=True), number, b"x")


async def test_the_parts_together_have_a_limit(box: Box) -> None:
    """It fits exactly, a part that is sent again counts once, and a byte more does not fit."""
    ticket = box.ticket(in_parts=True)
    half = bytes(MULTIPART_LIMIT_BYTES // 2)
    for number in (1, 2, 2):
        etag = await box.put_part(ticket, number, half)
    with pytest.raises(RequestError, match=f"exceeds {MULTIPART_LIMIT_BYTES} bytes") as refused:
        await box.put_part(ticket, 3, b"x")
    assert refused.value.status == 413
    await box.uploads.complete(ticket, [(1, etag), (2, etag)])
    assert (await box.stored(ticket))[0].size_bytes == MULTIPART_LIMIT_BYTES
    assert box.store.usage.total == MULTIPART_LIMIT_BYTES


async def test_completing_again_stays_done(box: Box) -> None:
    """An answer may be lost; but a part that comes late changes nothing any more."""
    ticket = box.ticket(in_parts=True)
    with pytest.raises(RequestError, match="not found"):
        await box.uploads.complete(ticket, [(1, "x")])
    etag = await box.put_part(ticket, 1, b"one")
    listed = [(1, etag)]
    await asyncio.gather(*(box.uploads.complete(ticket, listed) for _ in range(3)))
    await box.uploads.complete(ticket, listed)
    with pytest.raises(RequestError, match="used already"):
        await box.put_part(ticket, 1, b"two")
    assert (await box.stored(ticket))[1] == b"one"
    assert len(box.on_disk()) == 1
    assert box.store.usage.total == BLOCK_BYTES


async def test_what_is_not_completed_in_time_is_swept(box: Box) -> None:
    """With its bytes and its charge; a part that is still coming in then is dropped too."""
    ticket = box.ticket(in_parts=True)
    slow = Slow(b"two")
    await box.put_part(ticket, 1, b"one")
    late = asyncio.create_task(box.uploads.receive_part(ticket, ANN, 2, Body(slow.chunks())))
    await slow.begun.wait()
    await box.uploads.sweep()
    assert len(box.on_disk()) == 2
    box.now = ticket.expires_at
    await box.uploads.sweep()
    slow.go_on.set()
    with pytest.raises(RequestError, match="not found"):
        await late
    await box.check_nothing_is_left(ticket)


async def test_the_sweep_goes_on(box: Box) -> None:
    """It comes around again and again while the server runs."""
    sweeping = asyncio.create_task(box.uploads.keep_swept(0.001))
    for _ in range(2):
        ticket = box.ticket(in_parts=True)
        await box.put_part(ticket, 1, b"one")
        box.now = ticket.expires_at
        async with asyncio.timeout(WAIT_SECONDS):
            while box.on_disk():  # noqa: ASYNC110  (a sweep tells nobody how far it has come)
                await asyncio.sleep(0)
    sweeping.cancel()


async def test_a_start_sweeps_what_was_unfinished(box: Box) -> None:
    """Parts of a server that died are gone after the next start; what was stored is not."""
    whole, parts = box.ticket(), box.ticket(in_parts=True)
    await box.put(whole, PNG)
    await box.put_part(parts, 1, PNG)
    assert box.files.sweep(await box.store.all_file_names()) == 1
    assert (await box.stored(whole))[1] == PNG
    assert len(box.on_disk()) == 1


async def test_a_key_has_only_so_many_under_way(box: Box) -> None:
    """One more is told to wait, and other keys are not touched by it."""
    for _ in range(MAX_OPEN_PER_OWNER):
        last = box.ticket(in_parts=True)
        await box.put_part(last, 1)
    with pytest.raises(RequestError, match="may be under way") as refused:
        await box.put_part(box.ticket(in_parts=True), 1)
    assert refused.value.status == 429
    bob = Caller(owner="bob")
    ticket = box.uploads.announce(bob, "image/png", Lifecycle(), in_parts=True)
    # As far as the quota, which the others have used up.
    with pytest.raises(RequestError, match="storage for uploads is full"):
        await box.uploads.receive_part(ticket, bob, 1, sent())
