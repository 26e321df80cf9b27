"""SQLite, opened and kept the way the queue's promises need it."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files as package_files
from pathlib import Path
from typing import TypeVar

from server.errors import RequestError

T = TypeVar("T")

DATABASE_NAME = "queue.sqlite3"
LOCK_NAME = "lock"
BUSY_SECONDS = 5.0
RETRY_AFTER_SECONDS = 5


class StoreLockedError(Exception):
    """Another server already works on this data folder."""


class StoreCorruptError(Exception):
    """The database is damaged; it was left as it is."""


class StoreUnavailableError(RequestError):
    """The database refuses work for now: locked by somebody else, disk full, disk error.

    What was asked for did not happen. Callers hear a 503 and may try again.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            503,
            f"The queue's storage is not available: {reason}",
            "internal_error",
            {"retry-after": str(RETRY_AFTER_SECONDS)},
        )


class Database:
    """One database with one thread that writes and one that reads.

    One writer, so that no change ever meets another half way; a reader of its own, so that a
    status poll never waits for a commit's disk sync. WAL with `synchronous=FULL` syncs the log
    at every commit (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / DATABASE_NAME
        self._lock_path = data_dir / LOCK_NAME
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")
        self._write_connection: sqlite3.Connection | None = None
        self._read_connection: sqlite3.Connection | None = None
        self._lock_fd: int | None = None
        self.problem: str | None = None

    async def open(self) -> None:
        """Take the folder's lock, check the database, and bring it up to the newest schema.

        Raises `StoreLockedError` when a second server is running on the folder,
        `StoreCorruptError` when the database is damaged, and `StoreUnavailableError` when it
        cannot be had just now.
        """
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_fd = _take_lock(self._lock_path)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._open_writer)
        except sqlite3.OperationalError as error:
            await self.close()
            raise StoreUnavailableError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            await self.close()
            raise StoreCorruptError(
                f"{self.path} cannot be used: {error}. It was left as it is. Restore it from a "
                "backup, or move it away to begin with an empty queue."
            ) from error
        await loop.run_in_executor(self._reader, self._open_reader)

    async def close(self) -> None:
        """Finish what is being written, then let go of the file and the lock."""
        loop = asyncio.get_running_loop()
        if self._read_connection:
            await loop.run_in_executor(self._reader, self._read_connection.close)
        if self._write_connection:
            await loop.run_in_executor(self._writer, self._write_connection.close)
        self._read_connection = self._write_connection = None
        self._reader.shutdown()
        self._writer.shutdown()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def write(
        self, work: Callable[[sqlite3.Connection], T], then: Callable[[T], None] | None = None
    ) -> T:
        """Do `work` in one transaction; once this returns it survives a power cut.

        `then` is called with the result after the commit, before any other change begins.
        Raises `StoreUnavailableError` when the database refuses; nothing has changed then.
        """

        def transaction() -> T:
            connection = _opened(self._write_connection)
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if _is_refusal(error):
                    self.problem = str(error)
                    raise StoreUnavailableError(str(error)) from error
                raise
            self.problem = None
            if then:
                then(result)
            return result

        # Shielded: once the thread has begun, the commit happens even if the caller goes away,
        # and a caller that cleans up must not be told otherwise.
        future = asyncio.get_running_loop().run_in_executor(self._writer, transaction)
        return await asyncio.shield(future)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` on the reading connection, which sees the last commit."""

        def query() -> T:
            try:
                return work(_opened(self._read_connection))
            except sqlite3.DatabaseError as error:
                if _is_refusal(error):
                    raise StoreUnavailableError(str(error)) from error
                raise

        return await asyncio.get_running_loop().run_in_executor(self._reader, query)

    async def checkpoint(self) -> None:
        """Write the log back and cut it off, so that erased rows are nowhere on the disk.

        Raises `StoreUnavailableError` when that is not possible now.
        """

        def work() -> None:
            connection = _opened(self._write_connection)
            try:
                busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError as error:
                raise StoreUnavailableError(str(error)) from error
            if busy:
                raise StoreUnavailableError("somebody reads the log")

        await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def _open_writer(self) -> None:
        if self.path.exists():
            _check(self.path)
        connection = _connect(self.path)
        self._write_connection = connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # An erased prompt must not stay readable in the file's free pages.
        connection.execute("PRAGMA secure_delete = ON")
        _migrate(connection)

    def _open_reader(self) -> None:
        self._read_connection = _connect(self.path)
        self._read_connection.execute("PRAGMA query_only = ON")


def load_queries(name: str) -> dict[str, str]:
    """Read a `.sql` file of this package: statements, each headed by `-- name: NAME`."""
    text = (package_files("server.store") / name).read_text(encoding="utf-8")
    named = (block.partition("\n") for block in text.split("-- name: ")[1:])
    return {name.strip(): body.strip() for name, _, body in named}


def _is_refusal(error: BaseException) -> bool:
    """Say whether the database, not the statement, is the trouble: locked, full or damaged.

    Python raises the bare `DatabaseError` for a damaged file.
    """
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _opened(connection: sqlite3.Connection | None) -> sqlite3.Connection:
    if connection is None:
        raise RuntimeError("the store is not open")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions are begun and ended by us alone.
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def _check(path: Path) -> None:
    """Raise `sqlite3.DatabaseError` when the database is damaged, without touching it.

    Read-only, because the last connection that may write moves the log into the file as it
    closes: a damaged file would be changed by being looked at.
    """
    with contextlib.closing(
        sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    ) as connection:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


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


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the database up to the newest schema, one transaction for each numbered step."""
    folder = package_files("server.store") / "migrations"
    steps = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=str)
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    for number, step in enumerate(steps[done:], start=done + 1):
        script = step.read_text(encoding="utf-8")
        connection.executescript(f"BEGIN;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
