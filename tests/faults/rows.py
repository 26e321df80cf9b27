"""What is on the disk of a data folder, read beside a running server."""

import contextlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def rows(data_dir: Path, query: str, *parameters: object) -> list[dict[str, Any]]:
    """Return what a query gives, reading only."""
    uri = f"file:{data_dir / 'queue.sqlite3'}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query, parameters)]


def row_of(data_dir: Path, request_id: str) -> dict[str, Any]:
    """Return the row of a request."""
    (row,) = rows(data_dir, "SELECT * FROM jobs WHERE request_id = ?", request_id)
    return row


def files_on_disk(data_dir: Path) -> dict[str, int]:
    """Return the stored files, finished or not, by name, with their sizes in bytes."""
    sizes = {}
    for path in (data_dir / "files").glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # the server deletes it just now
            sizes[path.name] = path.stat().st_size
    return sizes


def files_on_record(data_dir: Path) -> dict[str, int]:
    """Return what the rows say of the stored files."""
    found = rows(data_dir, "SELECT name, size_bytes FROM files")
    return {row["name"]: row["size_bytes"] for row in found}
