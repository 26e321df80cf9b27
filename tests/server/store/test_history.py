"""One owner's completed jobs, page by page, and their erasure down to the bytes on disk."""

import sqlite3
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path

import pytest

from server import jobs
from server.jobs import IllegalTransitionError, Job, Outcome, StoredFile
from server.store import Store, database, history
from server.store.history import LAST, History, Question, Record
from server.store.outbox import Outbox

pytestmark = pytest.mark.anyio

FLUX, FLASH = "fal-ai/flux-2", "fal-ai/flux-2/flash"
MINE = Question(owner="me", endpoint_ids=(FLUX, FLASH), start=0, end=1000)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Return an open store on a fresh folder."""
    store = Store(tmp_path)
    await store.open()
    yield store
    await store.close()


async def add(store: Store, request_id: str, owner: str = "me", endpoint_id: str = FLUX) -> Job:
    """Queue a job that was sent at 1 second, with its id as the prompt."""
    return await store.insert(
        Job(
            request_id=request_id,
            endpoint_id=endpoint_id,
            owner=owner,
            origin="http://box",
            input=f'{{"prompt": "in {request_id}"}}',
            created_at=1.0,
            webhook_url="http://hook.example",
        )
    )


async def finish(store: Store, job: Job, at: float, status: int = 200) -> None:
    """Complete a job, with a file of the same name."""
    outcome = Outcome(
        http_status=status,
        body=f'{{"out": "out {job.request_id}"}}',
        keep_seconds=60,
        files=(
            StoredFile(
                name=f"{job.request_id}.png",
                content_type="image/png",
                size_bytes=1,
                owner=job.owner,
                expires_at=at + 3600,
            ),
        ),
    )
    await store.change(job.request_id, lambda found: jobs.complete(found, outcome, at))


async def done(store: Store, request_id: str, at: float, *, owner: str = "me") -> None:
    """Queue and complete a job."""
    await finish(store, await add(store, request_id, owner), at)


def ids(records: list[Record]) -> list[str]:
    """Return which jobs these are."""
    return [record.request_id for record in records]


async def test_pages_lead_through_all_of_mine_and_nothing_else(store: Store) -> None:
    """Newest first, those of the same moment too, though others are stored and erased between."""
    for number in range(10):
        await done(store, f"mine {number}", at=10 + number // 3)
        await done(store, f"other {number}", at=10 + number // 3, owner="other")
    await add(store, "still queued")
    pages, place = [], LAST
    for _ in range(4):
        records, following = await History(store).page(MINE, place, 3)
        pages.append(ids(records))
        await store.erase_request(records[0].request_id, "me")
        await done(store, f"later {len(pages)}", at=20)
        if following is None:
            break
        place = following
    assert [sorted(page) for page in pages] == [
        ["mine 7", "mine 8", "mine 9"],
        ["mine 4", "mine 5", "mine 6"],
        ["mine 1", "mine 2", "mine 3"],
        ["mine 0"],
    ]
    assert list(chain(*pages)) == [f"mine {number}" for number in reversed(range(10))]


async def test_each_filter(store: Store) -> None:
    """By endpoint, time, outcome and id; payloads only when asked for."""
    await done(store, "early", 10)
    await finish(store, await add(store, "flash", endpoint_id=FLASH), 20, status=422)
    await finish(store, await add(store, "late"), 30, status=503)
    history_of = History(store)

    async def found(**changes: object) -> list[str]:
        fields: dict[str, object] = {"owner": "me", "endpoint_ids": (FLUX, FLASH)}
        fields |= {"start": 0.0, "end": 1000.0, **changes}
        records, following = await history_of.page(Question(**fields))  # type: ignore[arg-type]
        assert following is None
        return ids(records)

    assert await found() == ["late", "flash", "early"]
    assert await found(endpoint_ids=(FLASH,)) == ["flash"]
    assert await found(endpoint_ids=("fal-ai/other",)) == []
    assert await found(start=20.0, end=30.0) == ["flash"]
    assert await found(lowest=500, highest=599) == ["late"]
    assert await found(request_id="early") == ["early"]
    assert await found(owner="nobody") == []
    (record,), _ = await history_of.page(
        Question(owner="me", endpoint_ids=(FLASH,), start=0, end=99, with_payloads=True)
    )
    assert (record.input, record.result) == ('{"prompt": "in flash"}', '{"out": "out flash"}')
    assert (record.http_status, record.completed_at, record.started_at) == (422, 20.0, None)
    plain, _ = await history_of.page(MINE)
    assert {(record.input, record.result) for record in plain} == {(None, None)}


async def test_a_page_of_large_payloads_ends_early(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than the limit and one job, and the next page goes on where it ended."""
    monkeypatch.setattr(history, "PAGE_PAYLOAD_CHARACTERS", 50)
    for number in range(5):
        await done(store, f"job {number}", at=10 + number)
    question = Question(owner="me", endpoint_ids=(FLUX,), start=0, end=1000, with_payloads=True)
    first, place = await History(store).page(question)
    assert ids(first) == ["job 4", "job 3"]
    assert place is not None
    rest, _ = await History(store).page(question, place)
    assert ids(rest) == ["job 2", "job 1"]


async def test_the_listing_reads_an_index(store: Store) -> None:
    """A key with few jobs finds them without reading everybody's."""
    query = History(store)._queries["completed"]
    parameters = {
        name.removeprefix(":"): 0
        for name in (
            ":with_payloads",
            ":owner",
            ":before",
            ":before_seq",
            ":start",
            ":end",
            ":endpoint_ids",
            ":lowest",
            ":highest",
            ":request_id",
            ":limit",
        )
    }
    plan = await store.read(
        lambda connection: [
            row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", parameters)
        ]
    )
    assert any("jobs_of_owner (owner=?" in detail for detail in plan), plan
    assert not any("TEMP B-TREE" in detail for detail in plan), plan


async def test_erasing_leaves_nothing(store: Store, tmp_path: Path) -> None:
    """Row, file record and webhook go at once, and no byte of them is left in the database."""
    await done(store, "keep", 10)
    await done(store, "gone", 10)
    assert await Outbox(store).letter("gone", 10) is not None
    assert await store.erase_request("gone", "me") == ["gone.png"]
    assert await store.get("gone") is None
    assert await store.get_file("gone.png") is None
    assert await Outbox(store).letter("gone", 10) is None
    disk = b"".join(path.read_bytes() for path in tmp_path.glob("queue.sqlite3*"))
    assert b"in keep" in disk
    assert b"in gone" not in disk
    assert b"out gone" not in disk
    assert await store.erase_request("gone", "me") is None


async def test_only_the_owner_erases_and_only_what_is_over(store: Store) -> None:
    """Another key's request is unknown; one that waits or runs is left alone."""
    await done(store, "mine", 10)
    assert await store.erase_request("mine", "other") is None
    assert await store.get_file("mine.png") is not None
    await add(store, "queued")
    for _ in range(2):
        with pytest.raises(IllegalTransitionError):
            await store.erase_request("queued", "me")
        assert await store.erase_request("queued", "other") is None
        await store.claim(11)
    assert await store.get("queued") is not None


async def test_files_that_outlive_their_request_can_be_erased(store: Store) -> None:
    """Their owner still names them by the request's id; nobody else does."""
    await done(store, "mine", 10)
    await Outbox(store).mark_delivered("mine")
    assert await store.erase_expired(100) == []
    assert await store.get("mine") is None
    assert await store.erase_request("mine", "other") is None
    assert await store.erase_request("mine", "me") == ["mine.png"]
    assert await store.get_file("mine.png") is None


async def test_a_reader_in_the_way_delays_only_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are gone at once; the log is cut off by the next sweep."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    store = Store(tmp_path)
    await store.open()
    await done(store, "gone", 10)
    with sqlite3.connect(tmp_path / "queue.sqlite3", isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        assert await store.erase_request("gone", "me") == ["gone.png"]
        assert await store.get("gone") is None
        reader.execute("COMMIT")
    reader.close()
    await store.erase_expired(11)
    disk = b"".join(path.read_bytes() for path in tmp_path.glob("queue.sqlite3*"))
    assert b"in gone" not in disk
    await store.close()
