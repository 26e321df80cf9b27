"""Order in the data folder: what a start puts right, and a sweep that goes on."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server import jobs
from server.clock import SteadyClock
from server.files import FileStore
from server.jobs import Job, JobStatus, Outcome, StoredFile
from server.settings import Settings
from server.store import Store, StoreUnavailableError
from server.upkeep import recover, sweep
from tests.server.stubs import make_preparer

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30
FAR_SECONDS = 365 * 24 * 3600.0


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Return an open store on the settings' folder."""
    store = Store(settings.data_dir)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def files(settings: Settings) -> FileStore:
    """Return the files of the settings' folder."""
    return FileStore(settings.data_dir / "files")


def make_job(request_id: str, created_at: float = 1.0) -> Job:
    """Make a queued job."""
    return Job(
        request_id=request_id,
        endpoint_id="fal-ai/flux-2",
        owner="local",
        origin="http://box",
        input="{}",
        created_at=created_at,
    )


async def complete(store: Store, files: FileStore, request_id: str, at: float) -> Path:
    """Store a job that was completed with a file, both kept for a second; return the file."""
    name = files.write(b"x", "png")
    stored = StoredFile(
        name=name, content_type="image/png", size_bytes=1, owner="local", expires_at=at + 1
    )
    outcome = Outcome(http_status=200, body="{}", keep_seconds=1, files=(stored,))
    await store.insert(make_job(request_id))
    await store.change(request_id, lambda job: jobs.complete(job, outcome, at))
    path = files.find(name)
    assert path is not None
    return path


async def until(condition: Callable[[], object]) -> None:
    """Wait until the sweep has come so far."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110  (a sweep tells nobody how far it has come)
            await asyncio.sleep(0)


async def test_a_start_puts_everything_right(
    settings: Settings, store: Store, files: FileStore
) -> None:
    """What ran waits again, files of nobody and the spool are gone, the clock is not behind."""
    clock = SteadyClock()
    ahead = clock() + FAR_SECONDS
    kept = await complete(store, files, "done", ahead)
    await store.insert(make_job("running", created_at=ahead))
    await store.claim(2.0)
    orphan = files.write(b"y", "png")
    spooled = settings.data_dir / "spool" / "running" / "0.png"
    spooled.parent.mkdir(parents=True)
    spooled.write_bytes(b"z")
    await recover(store, files, make_preparer(settings, files, store), clock)
    job = await store.get("running")
    assert job is not None
    assert (job.status, job.attempts) == (JobStatus.IN_QUEUE, 0)
    assert kept.exists()
    assert files.find(orphan) is None
    assert not spooled.exists()
    assert clock() >= ahead


async def test_the_sweep_erases_rows_and_files(store: Store, files: FileStore) -> None:
    """Past its time a result is gone with its file, and what is not stays."""
    clock = SteadyClock()
    old = await complete(store, files, "old", clock() - 10)
    new = await complete(store, files, "new", clock() + FAR_SECONDS)
    sweeping = asyncio.create_task(sweep(store, files, clock, 0.001))
    await until(lambda: not old.exists())
    assert await store.get("old") is None
    assert new.exists()
    sweeping.cancel()


@pytest.mark.parametrize(
    "error", [StoreUnavailableError("database is locked"), sqlite3.InternalError("odd")]
)
async def test_the_sweep_outlives_its_failures(
    store: Store, files: FileStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A database that refuses once does not end the sweeping for good."""
    clock, erase, failures = SteadyClock(), store.erase_expired, 2

    async def fail_twice(now: float) -> list[str]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise error
        return await erase(now)

    monkeypatch.setattr(store, "erase_expired", fail_twice)
    old = await complete(store, files, "old", clock() - 10)
    sweeping = asyncio.create_task(sweep(store, files, clock, 0.001))
    await until(lambda: not old.exists())
    sweeping.cancel()


async def test_one_file_that_stays_keeps_no_other(
    store: Store, files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be deleted is passed over; the next start sweeps it."""
    clock, delete = SteadyClock(), files.delete
    paths = [await complete(store, files, name, clock() - 10) for name in "abc"]
    stuck = min(paths)

    def refuse(name: str) -> None:
        if name == stuck.name:
            raise PermissionError(name)
        delete(name)

    monkeypatch.setattr(files, "delete", refuse)
    sweeping = asyncio.create_task(sweep(store, files, clock, 0.001))
    await until(lambda: sum(path.exists() for path in paths) == 1)
    sweeping.cancel()
    assert stuck.exists()
    assert files.sweep(await store.all_file_names()) == 1


async def test_names_of_erased_files_are_not_lost(
    store: Store, files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the database refuses half way, the files whose rows are gone are still told."""
    paths = [await complete(store, files, f"job{number}", 0.0) for number in range(5)]
    write, allowed = store.write, 2

    async def refuse_later(*arguments: Any) -> Any:
        nonlocal allowed
        allowed -= 1
        if allowed < 0:
            raise StoreUnavailableError("database or disk is full")
        return await write(*arguments)

    monkeypatch.setattr(store, "write", refuse_later)
    names = await store.erase_expired(10.0, limit=2)
    assert len(names) == 4
    assert set(names) <= {path.name for path in paths}
    with pytest.raises(StoreUnavailableError):
        await store.erase_expired(10.0, limit=2)
    monkeypatch.setattr(store, "write", write)
    assert len(await store.erase_expired(10.0, limit=2)) == 1


async def test_the_log_is_cut_off_at_the_next_chance(store: Store, settings: Settings) -> None:
    """While somebody reads the log it cannot be; the erased prompt goes with the next sweep."""
    job = replace(make_job("one"), input='{"prompt": "a very secret prompt"}')
    await store.insert(job)
    outcome = Outcome(http_status=200, body="{}", keep_seconds=1)
    await store.change("one", lambda job: jobs.complete(job, outcome, 0.0))
    connection = store._write_connection
    assert connection is not None
    connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM jobs").fetchall()
    with pytest.raises(StoreUnavailableError, match="somebody reads the log"):
        await store.erase_expired(10.0)
    other.close()
    assert await store.erase_expired(10.0) == []
    on_disk = b"".join(path.read_bytes() for path in settings.data_dir.glob("queue.sqlite3*"))
    assert b"very secret prompt" not in on_disk
