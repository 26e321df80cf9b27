"""Open an old database again and again, killed at one statement later each time.

    python -m tests.faults.migrate_stepwise FOLDER

FOLDER holds `queue.sqlite3`, which is copied for each try. Prints the schema's version that each
try left, or `torn` for anything between two versions, one a line; the last try was not killed.
"""

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from server.store import Store

DATABASE = "queue.sqlite3"
MOST_STATEMENTS = 500
SCHEMA = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name"


def migrations() -> list[str]:
    """Return the text of all migrations, in order."""
    folder = package_files("server.store") / "migrations"
    steps = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    return [(folder / name).read_text(encoding="utf-8") for name in steps]


def make_database(path: Path, version: int) -> None:
    """Make an empty database of an earlier version, as the server of then did."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        for script in migrations()[:version]:
            database.executescript(script)
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()


def read_schema(path: Path) -> tuple[int, list[tuple[Any, ...]]]:
    """Return the version and what it consists of."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        return version, database.execute(SCHEMA).fetchall()


def kill_at(statement: int) -> None:
    """Have this process kill itself when the database is about to run the n-th statement."""
    connect, left = sqlite3.connect, statement

    def on_statement(_sql: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(on_statement)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


async def open_store(folder: Path) -> None:
    """Do what a server does with its database at its start."""
    store = Store(folder)
    await store.open()
    await store.close()


def walk(folder: Path) -> None:
    """Print what is left after a kill at each statement."""
    known = {}
    for version in range(1, len(migrations()) + 1):
        reference = folder / f"reference{version}"
        make_database(reference, version)
        number, schema = read_schema(reference)
        known[number] = schema
    for statement in range(1, MOST_STATEMENTS):
        copy = folder / str(statement)
        copy.mkdir()
        shutil.copy(folder / DATABASE, copy)
        pid = os.fork()
        if pid == 0:
            kill_at(statement)
            asyncio.run(open_store(copy))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        version, schema = read_schema(copy / DATABASE)
        word = version if known.get(version) == schema else "torn"
        print(word, flush=True)  # noqa: T201  (the caller reads it)
        if os.WIFEXITED(status):
            return
    sys.exit("there is no end")


if __name__ == "__main__":
    walk(Path(sys.argv[1]))
