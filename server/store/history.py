"""What an owner's completed jobs were, page by page."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from server.store.database import Database, load_queries

PAGE_PAYLOAD_CHARACTERS = 8 * 1024 * 1024
"""A page ends early after this much of input and result: inputs may be pictures of megabytes."""

LAST = (float("inf"), 2**63 - 1)
"""The place before the first page."""

Place = tuple[float, int]
"""Where a page ended: the last job's time of completion and number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which jobs: of which endpoints, completed from `start` to before `end`, how they ended."""

    owner: str
    endpoint_ids: Sequence[str]
    start: float
    end: float
    lowest: int = 0  # of the HTTP status
    highest: int = 999
    request_id: str | None = None
    with_payloads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One completed job. Input and result are JSON text, None unless asked for."""

    request_id: str
    endpoint_id: str
    created_at: float
    started_at: float | None
    completed_at: float
    seq: int
    http_status: int
    input: str | None = None
    result: str | None = None


class History:
    """The completed jobs of one database, to be read only."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("history.sql")

    async def page(
        self, question: Question, before: Place = LAST, limit: int = 50
    ) -> tuple[list[Record], Place | None]:
        """Return the newest jobs below a place, and where to go on; None when that is all."""
        parameters = {
            **asdict(question),
            "endpoint_ids": json.dumps(list(question.endpoint_ids)),
            "before": before[0],
            "before_seq": before[1],
            "limit": limit + 1,
        }

        def read(connection: sqlite3.Connection) -> tuple[list[Record], bool]:
            rows = connection.execute(self._queries["completed"], parameters)
            records: list[Record] = []
            size = 0
            for row in islice(rows, limit):
                records.append(Record(**dict(row)))
                size += len(row["input"] or "") + len(row["result"] or "")
                if size > PAGE_PAYLOAD_CHARACTERS:
                    break
            return records, rows.fetchone() is not None

        records, has_more = await self._database.read(read)
        last = records[-1] if has_more else None
        return records, (last.completed_at, last.seq) if last else None
