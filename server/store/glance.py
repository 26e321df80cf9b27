"""One look at a job, beside a running server or without one; nothing is changed."""

import contextlib
import sqlite3
from pathlib import Path

from server.jobs import Job
from server.store.database import BUSY_SECONDS, DATABASE_NAME, StoreUnavailableError, load_queries
from server.store.rows import file_of, job_of


def glance(data_dir: Path, request_id: str) -> tuple[Job, str] | None:
    """Return a job with its files, and its input; None when there is no such job.

    Raises `StoreUnavailableError` when there is no database, or it cannot be read now.
    """
    queries, key = load_queries("queries.sql"), {"request_id": request_id}
    address = f"{(data_dir / DATABASE_NAME).resolve().as_uri()}?mode=ro"
    try:
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        ) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            row = connection.execute(queries["get_job"], key).fetchone()
            if row is None:
                return None
            files = connection.execute(queries["files_of_job"], key).fetchall()
            given = connection.execute(queries["get_input"], key).fetchone()
            return job_of(row, tuple(map(file_of, files))), str(given["body"])
    except sqlite3.DatabaseError as error:
        raise StoreUnavailableError(f"{data_dir / DATABASE_NAME}: {error}") from error
