"""Jobs and file records in SQLite, durable once a call returns.

One thread writes, so that no change ever meets another half way; one more thread reads, so that
a status poll never waits for a commit's disk sync. WAL with `synchronous=FULL` syncs the log at
every commit (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, TypeVar

from server import jobs
from server.jobs import Job, JobStatus, Outcome, StoredFile

T = TypeVar("T")

DATABASE_NAME = "queue.sqlite3"
LOCK_NAME = "lock"
BUSY_SECONDS = 5.0


class StoreLockedError(Exception):
    """Another server already works on this data folder."""


class Store:
    """The jobs and files of one data folder. Every method may be awaited from the event loop."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._queries = _load_queries()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")
        self._write_connection: sqlite3.Connection | None = None
        self._read_connection: sqlite3.Connection | None = None
        self._lock_fd: int | None = None

    async def open(self) -> None:
        """Take the folder's lock, create or migrate the database, and make it ready.

        Raises `StoreLockedError` when a second server is running on the folder.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._lock_fd = _take_lock(self._data_dir / LOCK_NAME)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._open_writer)
        await loop.run_in_executor(self._reader, self._open_reader)

    async def close(self) -> None:
        """Finish what is being written, then let go of the files and the lock."""
        loop = asyncio.get_running_loop()
        if self._read_connection:
            await loop.run_in_executor(self._reader, self._read_connection.close)
        if self._write_connection:
            await loop.run_in_executor(self._writer, self._write_connection.close)
        self._reader.shutdown()
        self._writer.shutdown()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def insert(self, job: Job) -> None:
        """Store a new job; once this returns it survives a crash and a power cut."""
        row = asdict(job)
        await self._write(lambda connection: connection.execute(self._queries["insert_job"], row))

    async def get(self, request_id: str) -> Job | None:
        """Return the job as it is now, or None when it is unknown or expired."""

        def read(connection: sqlite3.Connection) -> Job | None:
            return self._find(connection, request_id)

        return await self._read(read)

    async def count_ahead(self, request_id: str) -> int:
        """Count the queued jobs that will be claimed before this one."""
        parameters = {"request_id": request_id}

        def read(connection: sqlite3.Connection) -> int:
            row = connection.execute(self._queries["count_ahead"], parameters).fetchone()
            return int(row[0])

        return await self._read(read)

    async def count_by_status(self) -> dict[str, int]:
        """Count the unfinished jobs by their status."""

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            return dict(map(tuple, connection.execute(self._queries["count_by_status"])))

        return await self._read(read)

    async def change(self, request_id: str, transition: Callable[[Job], Job]) -> Job | None:
        """Apply a transition of `jobs` and store what it gives, in one transaction.

        The outcome's files are recorded with it. Returns the new job, or None when there is no
        such job. Whatever `transition` raises comes out, and nothing is changed.
        """

        def write(connection: sqlite3.Connection) -> Job | None:
            job = self._find(connection, request_id)
            return self._store(connection, job, transition(job)) if job else None

        return await self._write(write)

    async def claim(self, now: float) -> Job | None:
        """Claim the oldest queued job, or return None when the queue is empty."""

        def write(connection: sqlite3.Connection) -> Job | None:
            row = connection.execute(self._queries["oldest_queued"]).fetchone()
            if row is None:
                return None
            job = _job_of(row)
            return self._store(connection, job, jobs.claim(job, now))

        return await self._write(write)

    async def requeue_all_in_progress(self) -> list[Job]:
        """Put back whatever ran when the last server died; its death is not the jobs' fault."""

        def write(connection: sqlite3.Connection) -> list[Job]:
            rows = connection.execute(self._queries["all_in_progress"]).fetchall()
            found = [_job_of(row) for row in rows]
            return [
                self._store(
                    connection, job, jobs.requeue(job, runner_died=False, charge_attempt=False)
                )
                for job in found
            ]

        return await self._write(write)

    async def get_file(self, name: str) -> StoredFile | None:
        """Return the record of a stored file, or None."""

        def read(connection: sqlite3.Connection) -> StoredFile | None:
            row = connection.execute(self._queries["get_file"], {"name": name}).fetchone()
            return StoredFile(**dict(row)) if row else None

        return await self._read(read)

    async def all_file_names(self) -> set[str]:
        """Return the names of all files that a job owns."""

        def read(connection: sqlite3.Connection) -> set[str]:
            return {row[0] for row in connection.execute(self._queries["all_file_names"])}

        return await self._read(read)

    async def erase_expired(self, now: float, limit: int = 100) -> list[str]:
        """Erase up to `limit` expired jobs, input and result; return the names of their files."""

        def write(connection: sqlite3.Connection) -> list[str]:
            parameters = {"now": now, "limit": limit}
            rows = connection.execute(self._queries["expired_jobs"], parameters).fetchall()
            names: list[str] = []
            for row in rows:
                key = {"request_id": row["request_id"]}
                owned = connection.execute(self._queries["files_of_job"], key)
                names += [file_row["name"] for file_row in owned]
                connection.execute(self._queries["delete_files_of_job"], key)
                connection.execute(self._queries["delete_job"], key)
            return names

        names = await self._write(write)
        # The log file still holds the erased rows until it is written back and cut off.
        await asyncio.get_running_loop().run_in_executor(self._writer, self._checkpoint)
        return names

    def _checkpoint(self) -> None:
        if self._write_connection:
            self._write_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _open_writer(self) -> None:
        connection = _connect(self._data_dir / DATABASE_NAME)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # An erased prompt must not stay readable in the file's free pages.
        connection.execute("PRAGMA secure_delete = ON")
        _migrate(connection)
        self._write_connection = connection

    def _open_reader(self) -> None:
        self._read_connection = _connect(self._data_dir / DATABASE_NAME)
        self._read_connection.execute("PRAGMA query_only = ON")

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def transaction() -> T:
            connection = self._write_connection
            if connection is None:
                raise RuntimeError("the store is not open")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        # Shielded: once the thread has begun, the caller's cancellation must not hide the result
        # of a commit that happens anyway from whoever cleans up.
        future = asyncio.get_running_loop().run_in_executor(self._writer, transaction)
        return await asyncio.shield(future)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def query() -> T:
            if self._read_connection is None:
                raise RuntimeError("the store is not open")
            return work(self._read_connection)

        return await asyncio.get_running_loop().run_in_executor(self._reader, query)

    def _find(self, connection: sqlite3.Connection, request_id: str) -> Job | None:
        key = {"request_id": request_id}
        row = connection.execute(self._queries["get_job"], key).fetchone()
        if row is None:
            return None
        if row["http_status"] is None:
            return _job_of(row)
        owned = connection.execute(self._queries["files_of_job"], key).fetchall()
        return _job_of(row, tuple(StoredFile(**dict(file_row)) for file_row in owned))

    def _store(self, connection: sqlite3.Connection, old: Job, new: Job) -> Job:
        connection.execute(self._queries["update_job"], _row_of(new))
        if old.outcome is None and new.outcome is not None:
            for file in new.outcome.files:
                row = {**asdict(file), "request_id": new.request_id}
                connection.execute(self._queries["insert_file"], row)
        return new


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions are begun and ended by us alone.
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreLockedError(
            f"{path.parent} is in use by another flux2-serve; give this one a data folder of "
            "its own (--data-dir)"
        ) from None
    return descriptor


def _load_queries() -> dict[str, str]:
    text = (package_files("server.store") / "queries.sql").read_text(encoding="utf-8")
    named = (block.partition("\n") for block in text.split("-- name: ")[1:])
    return {name.strip(): body.strip() for name, _, body in named}


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the database up to the newest schema, one transaction for each step."""
    folder = package_files("server.store") / "migrations"
    steps = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=str)
    done = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, step in enumerate(steps[done:], start=done + 1):
        script = step.read_text(encoding="utf-8")
        connection.executescript(f"BEGIN;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")


def _row_of(job: Job) -> dict[str, Any]:
    row = asdict(job)
    outcome = row.pop("outcome") or {}
    row["result"] = outcome.get("body")
    for column in ("http_status", "error_type", "inference_seconds", "logs"):
        row[column] = outcome.get(column)
    return row


def _job_of(row: sqlite3.Row, files: tuple[StoredFile, ...] = ()) -> Job:
    outcome = None
    if row["http_status"] is not None:
        outcome = Outcome(
            http_status=row["http_status"],
            body=row["result"],
            keep_seconds=row["expires_at"] - row["completed_at"],
            error_type=row["error_type"],
            inference_seconds=row["inference_seconds"],
            logs=row["logs"],
            files=files,
        )
    return Job(
        request_id=row["request_id"],
        endpoint_id=row["endpoint_id"],
        origin=row["origin"],
        input=row["input"],
        created_at=row["created_at"],
        status=JobStatus(row["status"]),
        attempts=row["attempts"],
        runner_deaths=row["runner_deaths"],
        cancel_requested=bool(row["cancel_requested"]),
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        expires_at=row["expires_at"],
        outcome=outcome,
    )
