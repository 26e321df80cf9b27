"""The store: durable, in order, and one server at a time."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.types import Model
from server import jobs
from server.jobs import (
    IllegalTransitionError,
    Job,
    JobStatus,
    Need,
    Outcome,
    Priority,
    StoredFile,
)
from server.store import Store, StoreLockedError
from tests.faults.migrate_stepwise import make_database

pytestmark = pytest.mark.anyio

FILE = StoredFile(
    name="a" * 32 + ".png", content_type="image/png", size_bytes=3, owner="local", expires_at=160.0
)
OUTCOME = Outcome(
    http_status=200,
    body='{"seed": 1}',
    keep_seconds=60,
    error_type=None,
    inference_seconds=0.5,
    logs='[{"message": "x"}]',
    files=(FILE,),
)


STEPS = {
    "next_queued": ["jobs_queued (needs=? AND model=?)"],
    "queued_of_model": ["jobs_queued (needs=? AND model=?)"],
    "next_in_need": [
        "jobs_in_need (needs=? AND model=? AND owner>?)",
        "jobs_in_need (needs=? AND model=? AND owner=?)",
    ],
}
"""Where a shorter way into an index would read the rows of other models, or of other owners."""


def make_job(request_id: str) -> Job:
    """Make a queued job."""
    return Job(
        request_id=request_id,
        endpoint_id="fal-ai/flux-2",
        owner="local",
        origin="http://box",
        input='{"prompt": "a very secret prompt"}',
        created_at=1.0,
    )


async def places(store: Store, names: str) -> list[int]:
    """Return how many are ahead of each of these jobs."""
    found = [await store.get(name) for name in names]
    return [store.backlog.count_ahead(job) for job in found if job]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Return an open store in a fresh folder."""
    store = Store(tmp_path)
    await store.open()
    yield store
    await store.close()


async def test_a_job_comes_back_as_it_was(store: Store) -> None:
    """Every field survives the way through the database, at every stage of life."""
    job = make_job("one")
    await store.insert(job)
    stored = replace(job, seq=1, input="")
    assert await store.get("one") == stored
    assert await store.read_input("one") == job.input
    claimed = await store.claim(2.0)
    assert claimed == jobs.claim(stored, 2.0)
    assert await store.get("one") == claimed
    done = await store.change("one", lambda job: jobs.complete(job, OUTCOME, 3.0))
    assert await store.get("one") == done
    assert await store.get_file(FILE.name) == FILE
    assert await store.all_file_names() == {FILE.name}


async def test_unknown_ids_give_none(store: Store) -> None:
    """Asking for or changing what is not there is no error."""
    assert await store.get("nobody") is None
    assert await store.change("nobody", lambda job: job) is None
    assert await store.claim(1.0) is None
    assert await store.get_file("b" * 32 + ".png") is None


async def test_claims_follow_the_order_of_acceptance(store: Store) -> None:
    """First in, first claimed; a requeued job keeps its place."""
    for name in "abc":
        await store.insert(make_job(name))
    assert await places(store, "abc") == [0, 1, 2]
    first = await store.claim(2.0)
    assert first is not None
    assert first.request_id == "a"
    assert (len(store.backlog), store.backlog.in_progress) == (2, 1)
    await store.change("a", lambda job: jobs.requeue(job, runner_died=False, charge_attempt=True))
    again = await store.claim(3.0)
    assert again is not None
    assert (again.request_id, again.attempts) == ("a", 2)


async def test_claims_of_some_models(store: Store) -> None:
    """Each is claimed in its own order, whatever waits for others; places stay those of all."""
    await store.insert(replace(make_job("a"), priority=Priority.LOW))
    await store.insert(replace(make_job("b"), model=Model.KLEIN_4B))
    await store.insert(make_job("c"))
    await store.insert(replace(make_job("d"), model=Model.KLEIN_4B, needs=Need.FETCHING))
    await store.insert(replace(make_job("e"), needs=Need.FETCHING))
    both = (Model.DEV, Model.KLEIN_4B)

    async def firsts(*models: Model, prepared: tuple[str, ...] = ()) -> list[str]:
        return [job.request_id for job in await store.first_queued(models, prepared)]

    assert await firsts(*both) == ["b", "c"]
    assert await firsts(Model.DEV) == ["c"]
    assert await firsts(Model.KLEIN_9B) == []
    assert await places(store, "abc") == [4, 0, 1]
    assert await store.claim(2.0, (), (Model.KLEIN_9B,)) is None
    claimed = await store.claim(2.0, (), (Model.DEV,))
    assert claimed is not None
    assert (claimed.request_id, claimed.model) == ("c", Model.DEV)
    assert await firsts(*both) == ["b", "a"]
    assert await firsts(*both, prepared=("e", "d")) == ["b", "e"]
    await store.claim(2.0)
    assert await firsts(*both, prepared=("e", "d")) == ["d", "e"]
    assert await store.queued_of_model(Model.KLEIN_4B) == ["d"]


async def test_a_job_of_before_is_of_dev(tmp_path: Path) -> None:
    """What was accepted when there was one model is claimed for it after the upgrade."""
    make_database(tmp_path / "queue.sqlite3", 6)
    with closing(sqlite3.connect(tmp_path / "queue.sqlite3")) as database, database:
        database.execute(
            "INSERT INTO jobs (request_id, endpoint_id, origin, status, attempts, runner_deaths,"
            " cancel_requested, created_at) VALUES ('old', 'fal-ai/flux-2/flash', 'http://box',"
            " 'IN_QUEUE', 0, 0, 0, 1.0)"
        )
    store = Store(tmp_path)
    await store.open()
    job = await store.claim(2.0, (), (Model.DEV,))
    await store.close()
    assert job is not None
    assert (job.request_id, job.model) == ("old", Model.DEV)


async def test_a_refused_transition_changes_nothing(store: Store) -> None:
    """What the transition raises comes out, and the row and its files stay as they were."""
    await store.insert(make_job("one"))
    await store.change("one", lambda job: jobs.complete(job, OUTCOME, 3.0))
    before = await store.get("one")
    other = replace(OUTCOME, body="{}", files=(replace(FILE, name="c" * 32 + ".png"),))
    with pytest.raises(IllegalTransitionError):
        await store.change("one", lambda job: jobs.complete(job, other, 4.0))
    assert await store.get("one") == before
    assert await store.all_file_names() == {FILE.name}


async def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    """Closing and opening again loses nothing, and running jobs go back without a charge."""
    store = Store(tmp_path)
    await store.open()
    for name in "ab":
        await store.insert(make_job(name))
    await store.claim(2.0)
    await store.close()
    store = Store(tmp_path)
    await store.open()
    requeued = await store.requeue_all_in_progress()
    assert [(job.request_id, job.status, job.attempts) for job in requeued] == [
        ("a", JobStatus.IN_QUEUE, 0)
    ]
    assert await places(store, "ab") == [0, 1]
    assert (len(store.backlog), store.backlog.in_progress) == (2, 0)
    await store.close()


async def test_a_second_store_on_the_folder_is_refused(store: Store, tmp_path: Path) -> None:
    """Two servers on one data folder would tear the queue apart."""
    assert store is not None
    with pytest.raises(StoreLockedError, match="in use by another flux2-serve"):
        await Store(tmp_path).open()


async def test_expired_jobs_are_erased_with_their_files(store: Store, tmp_path: Path) -> None:
    """After its time a job is gone, and its prompt can no longer be read from the disk."""
    for name in "ab":
        await store.insert(make_job(name))
    await store.change("a", lambda job: jobs.complete(job, OUTCOME, 100.0))
    assert await store.erase_expired(159.9) == []
    assert await store.erase_expired(160.0) == [FILE.name]
    assert await store.get("a") is None
    assert await store.get_file(FILE.name) is None
    assert await store.get("b") is not None
    await store.change("b", lambda job: jobs.complete(job, replace(OUTCOME, files=()), 100.0))
    await store.erase_expired(1000.0)
    on_disk = b"".join(path.read_bytes() for path in tmp_path.glob("queue.sqlite3*"))
    assert b"very secret prompt" not in on_disk


async def test_uploads_are_counted_until_they_are_erased(store: Store, tmp_path: Path) -> None:
    """Their record comes back, their usage over a restart too, and files of jobs cost nothing."""
    acl = '{"default":"forbid","rules":[]}'
    upload = replace(FILE, name="d" * 32 + ".bin", owner="ann", acl=acl, size_bytes=5000)
    kept = replace(upload, name="e" * 32 + ".bin", expires_at=None)
    for file in (upload, kept):
        await store.insert_upload(file)
        assert await store.get_file(file.name) == file
    with pytest.raises(sqlite3.IntegrityError):
        await store.insert_upload(upload)
    await store.insert(make_job("one"))
    await store.change("one", lambda job: jobs.complete(job, OUTCOME, 3.0))
    await store.close()
    again = Store(tmp_path)
    await again.open()
    assert (again.usage.of("ann"), again.usage.total) == (4 * 4096, 4 * 4096)
    assert set(await again.erase_expired(160.0)) == {FILE.name, upload.name}
    assert again.usage.total == 2 * 4096
    assert await again.get_file(upload.name) is None
    assert await again.get_file(kept.name) == kept
    await again.close()


async def test_the_log_is_synced_at_every_commit(store: Store, tmp_path: Path) -> None:
    """WAL with FULL sync is what an accepted request's promise rests on."""
    assert store is not None
    connection = store._write_connection
    assert connection is not None
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    other = sqlite3.connect(tmp_path / "queue.sqlite3")
    assert other.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert other.execute("PRAGMA user_version").fetchone()[0] == 7
    other.close()


async def test_claim_uses_the_index(store: Store, tmp_path: Path) -> None:
    """Claim, position, counts and expiry read indexes of what is open, not the history."""
    assert store is not None
    other = sqlite3.connect(tmp_path / "queue.sqlite3")
    for name in (
        "next_queued",
        "next_in_need",
        "queued_of_model",
        "oldest_queued_at",
        "all_in_progress",
        "missed_starts",
        "expired_jobs",
        "expired_files",
        "all_uploads",
    ):
        parameters = {"now": 1.0, "limit": 1, "prepared": "[]", "needs": 1}
        parameters |= {"models": '["dev"]', "model": "dev", "priority": 0}
        rows = other.execute("EXPLAIN QUERY PLAN " + store._queries[name], parameters).fetchall()
        reads = [row[3] for row in rows if {"jobs", "files"} & set(row[3].split()[1:2])]
        assert reads, name
        assert all(" INDEX " in read or "(rowid=?)" in read for read in reads), (name, reads)
        for step in STEPS.get(name, ()):
            assert any(step in read for read in reads), (name, reads)
    other.close()
