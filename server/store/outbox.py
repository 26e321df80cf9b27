"""The webhooks that are still to be delivered, as rows that survive a crash.

The row is made with the result, in `Store`; here it is only found and brought to its end.
"""

import sqlite3
from dataclasses import dataclass
from typing import Any

from server.store.database import Database, load_queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A webhook whose time for an attempt has come."""

    request_id: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What an attempt sends; `owner` is whose request it was, `attempts` were made before."""

    request_id: str
    owner: str
    url: str
    body: str
    attempts: int


class Outbox:
    """The outbox of one database. Times are seconds since 1970 on the clock of the jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("outbox.sql")

    async def due(self, now: float, limit: int) -> list[Due]:
        """Return what is due, oldest first: at most `limit` for each receiver."""
        parameters = {"now": now, "limit": limit}

        def read(connection: sqlite3.Connection) -> list[Due]:
            rows = connection.execute(self._queries["due"], parameters)
            return [Due(**dict(row)) for row in rows]

        return await self._database.read(read)

    async def next_due(self, now: float) -> float | None:
        """Return when the next webhook will be due that is not yet, or None."""

        def read(connection: sqlite3.Connection) -> float | None:
            row = connection.execute(self._queries["next_due"], {"now": now}).fetchone()
            return None if row[0] is None else float(row[0])

        return await self._database.read(read)

    async def letter(self, request_id: str, now: float) -> Letter | None:
        """Return what to send, or None when this webhook is not due, not any more, or erased."""
        parameters = {"request_id": request_id, "now": now}

        def read(connection: sqlite3.Connection) -> Letter | None:
            row = connection.execute(self._queries["letter"], parameters).fetchone()
            return Letter(**dict(row)) if row else None

        return await self._database.read(read)

    async def mark_delivered(self, request_id: str) -> None:
        """Note an attempt that was acknowledged; it was the last one."""
        await self._mark("mark_delivered", {"request_id": request_id})

    async def mark_failed(self, request_id: str, error: str, next_attempt_at: float | None) -> None:
        """Note an attempt that failed, and when the next one is; None abandons the webhook."""
        parameters = {
            "request_id": request_id,
            "error": error,
            "next_attempt_at": next_attempt_at,
        }
        await self._mark("mark_failed", parameters)

    async def counts(self) -> dict[str, int]:
        """Count the webhooks of each state. Reads them all: for tests and reports."""

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            return dict(map(tuple, connection.execute(self._queries["counts"])))

        return await self._database.read(read)

    async def _mark(self, query: str, parameters: dict[str, Any]) -> None:
        await self._database.write(
            lambda connection: connection.execute(self._queries[query], parameters)
        )
