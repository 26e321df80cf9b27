"""The jobs and files of one data folder, durable once a call returns."""

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.types import Model
from server import jobs
from server.jobs import Job, Need, Priority, StoredFile
from server.payloads import webhook_body
from server.store.backlog import Backlog
from server.store.database import Database, StoreUnavailableError, load_queries
from server.store.rows import file_of, job_of, row_of
from server.store.usage import Usage, disk_bytes

Transition = Callable[[Job], Job]
Change = tuple[Job, Job]


class Store(Database):
    """Jobs change here only by the transitions of `jobs`, one transaction each."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._queries = load_queries("queries.sql")
        self.backlog = Backlog()
        self.usage = Usage()
        self._checkpoint_due = False

    async def open(self) -> None:
        """Open the database and count what is in it. Raises as `Database.open` does."""
        await super().open()

        def read(connection: sqlite3.Connection) -> list[tuple[int, int, str, str]]:
            return [tuple(row) for row in connection.execute(self._queries["all_queued"])]

        def read_uploads(connection: sqlite3.Connection) -> list[tuple[str, int]]:
            return [tuple(row) for row in connection.execute(self._queries["all_uploads"])]

        self.backlog.load(await self.read(read))
        self.usage.load(await self.read(read_uploads))

    async def insert(self, job: Job, check: Callable[[], None] = lambda: None) -> Job:
        """Store a new job and its input; return it with its number and, as from now on, without.

        `read_input` gives the input back: it may be large, and only its preparation needs it.
        `check` is called when the backlog cannot change any more before the job is in it; what
        it raises comes out, and nothing is stored then.
        """
        row = row_of(job)

        def write(connection: sqlite3.Connection) -> Job:
            check()
            cursor = connection.execute(self._queries["insert_job"], row)
            connection.execute(self._queries["insert_input"], row)
            return replace(job, seq=cursor.lastrowid or 0, input="")

        return await self.write(write, lambda stored: self.backlog.follow(None, stored))

    async def get(self, request_id: str) -> Job | None:
        """Return the job as it is now, or None when it is unknown or expired."""
        return await self.read(lambda connection: self._find(connection, request_id))

    async def read_input(self, request_id: str) -> str:
        """Return the JSON text of a job's input. Raises KeyError when there is no such job."""

        def read(connection: sqlite3.Connection) -> str:
            key = {"request_id": request_id}
            row = connection.execute(self._queries["get_input"], key).fetchone()
            if row is None:
                raise KeyError(request_id)
            return str(row["body"])

        return await self.read(read)

    async def change(self, request_id: str, transition: Transition) -> Job | None:
        """Apply a transition and store what it gives, with the outcome's files and webhook.

        Returns the new job, or None when there is no such job. Whatever `transition` raises
        comes out, and nothing is changed.
        """

        def write(connection: sqlite3.Connection) -> list[Change]:
            job = self._find(connection, request_id)
            return [self._apply(connection, job, transition)] if job else []

        changes = await self.write(write, self._follow)
        return changes[0][1] if changes else None

    async def first_queued(
        self, models: Collection[Model], prepared: Collection[str] = ()
    ) -> list[Job]:
        """Return the first queued job of each of these models, those claimed before others first.

        Of those that need something only the `prepared` ones, given by their ids, count.
        """
        parameters = _next_queued(models, prepared, limit=-1)

        def read(connection: sqlite3.Connection) -> list[Job]:
            firsts: dict[str, Job] = {}
            for row in connection.execute(self._queries["next_queued"], parameters):
                if row["model"] not in firsts:
                    firsts[row["model"]] = job_of(row)
            return list(firsts.values())

        return await self.read(read) if len(self.backlog) else []

    async def claim(
        self,
        now: float,
        prepared: Collection[str] = (),
        models: Collection[Model] = tuple(Model),
    ) -> Job | None:
        """Claim the next queued job of these models, urgent before old; None when there is none.

        Of those that need something only the `prepared` ones, given by their ids, are claimed.
        """
        parameters = _next_queued(models, prepared, limit=1)

        def write(connection: sqlite3.Connection) -> list[Change]:
            row = connection.execute(self._queries["next_queued"], parameters).fetchone()
            if row is None:
                return []
            return [self._apply(connection, job_of(row), lambda job: jobs.claim(job, now))]

        if not len(self.backlog):
            return None
        changes = await self.write(write, self._follow)
        return changes[0][1] if changes else None

    async def queued_of_model(self, model: Model, limit: int = 100) -> list[str]:
        """Return the ids of some queued jobs of a model."""
        # With their needs, as the index begins so.
        parameters = {"model": model, "needs": json.dumps(list(Need)), "limit": limit}
        return await self._read_column("queued_of_model", parameters)

    async def next_in_need(self, model: Model, needs: Need, limit: int) -> list[Job]:
        """Return a model's queued jobs to prepare next: urgent before old, owners in turns."""
        parameters = {"model": model, "needs": needs, "limit": limit}

        def read(connection: sqlite3.Connection) -> list[Job]:
            return [
                job_of(row) for row in connection.execute(self._queries["next_in_need"], parameters)
            ]

        return await self.read(read)

    async def requeue_all_in_progress(self) -> list[Job]:
        """Put back whatever ran when the last server died; its death is not the jobs' fault."""

        def transition(job: Job) -> Job:
            return jobs.requeue(job, runner_died=False, charge_attempt=False)

        def write(connection: sqlite3.Connection) -> list[Change]:
            rows = connection.execute(self._queries["all_in_progress"]).fetchall()
            return [self._apply(connection, job_of(row), transition) for row in rows]

        def follow(changes: list[Change]) -> None:
            self.backlog.in_progress += len(changes)  # not counted when the backlog was loaded
            self._follow(changes)

        return [new for _, new in await self.write(write, follow)]

    async def missed_starts(self, now: float, limit: int = 100) -> list[str]:
        """Return the ids of queued jobs whose caller's time to start is over."""
        return await self._read_column("missed_starts", {"now": now, "limit": limit})

    async def next_start_by(self) -> float | None:
        """Return the nearest time by which some queued job wants to be started."""
        return await self._read_value("next_start_by", {})

    async def oldest_queued_at(self) -> float | None:
        """Return when the job that waits longest was accepted."""
        query = self._queries["oldest_queued_at"]

        def read(connection: sqlite3.Connection) -> float | None:
            moments = [
                float(moment)
                for model, needs, priority in itertools.product(Model, Need, Priority)
                for (moment,) in connection.execute(
                    query, {"model": model, "needs": needs, "priority": priority}
                )
            ]
            return min(moments, default=None)

        return await self.read(read)

    async def latest_moment(self) -> float | None:
        """Return the time of the newest change that is stored."""
        return await self._read_value("latest_moment", {})

    async def get_file(self, name: str) -> StoredFile | None:
        """Return the record of a stored file, or None."""

        def read(connection: sqlite3.Connection) -> StoredFile | None:
            row = connection.execute(self._queries["get_file"], {"name": name}).fetchone()
            return file_of(row) if row else None

        return await self.read(read)

    async def insert_upload(self, file: StoredFile) -> None:
        """Store the record of an upload, which is in `usage` already.

        Raises `sqlite3.IntegrityError` when there is a file of that name.
        """
        row = {**asdict(file), "request_id": None}
        await self.write(lambda connection: connection.execute(self._queries["insert_file"], row))

    async def all_file_names(self) -> set[str]:
        """Return the names of all files that some record keeps."""
        return set(await self._read_column("all_file_names", {}))

    async def erase_request(self, request_id: str, owner: str) -> list[str] | None:
        """Erase a completed job of this owner, its files' records, and its webhook.

        Returns the names of the files to delete, those that outlived the job's record among
        them; None when this owner has neither. Raises `IllegalTransitionError` for a job that
        is not over yet. If the database's log cannot be cut off now, the next sweep does it.
        """
        key = {"request_id": request_id, "owner": owner}

        def write(connection: sqlite3.Connection) -> tuple[bool, list[str]]:
            job = connection.execute(self._queries["get_job"], key).fetchone()
            if job and job["owner"] != owner:
                return False, []
            if job and job["http_status"] is None:
                raise jobs.IllegalTransitionError(f"erase: {request_id} is {job['status']}")
            files = connection.execute(self._queries["files_of_job"], key).fetchall()
            names = [file["name"] for file in files if file["owner"] == owner]
            for name in names:
                connection.execute(self._queries["delete_file"], {"name": name})
            connection.execute(self._queries["delete_job"], key)
            return bool(job or names), names

        found, names = await self.write(write)
        if not found:
            return None
        self._checkpoint_due = True
        with contextlib.suppress(StoreUnavailableError):
            await self._cut_off_log()
        return names

    async def erase_expired(self, now: float, limit: int = 100) -> list[str]:
        """Erase expired jobs and file records; return the names of the files to delete.

        In batches of `limit`, so that a long list never keeps a submit waiting.
        """

        def write(connection: sqlite3.Connection) -> tuple[int, list[sqlite3.Row]]:
            parameters = {"now": now, "limit": limit}
            expired = connection.execute(self._queries["expired_jobs"], parameters).fetchall()
            for row in expired:
                connection.execute(self._queries["delete_job"], dict(row))
            files = connection.execute(self._queries["expired_files"], parameters).fetchall()
            for row in files:
                connection.execute(self._queries["delete_file"], {"name": row["name"]})
            return len(expired), files

        names: list[str] = []
        more = True
        try:
            while more:
                erased, batch = await self.write(write, self._follow_erased)
                names += [row["name"] for row in batch]
                self._checkpoint_due |= erased > 0
                more = max(erased, len(batch)) == limit
            await self._cut_off_log()
        except StoreUnavailableError:
            if not names:
                raise
            # Their rows are gone: this is the one chance to delete them before the next start.
        return names

    async def _cut_off_log(self) -> None:
        if self._checkpoint_due:
            await self.checkpoint()
            self._checkpoint_due = False

    async def _read_column(self, query: str, parameters: dict[str, object]) -> list[str]:
        def read(connection: sqlite3.Connection) -> list[str]:
            return [row[0] for row in connection.execute(self._queries[query], parameters)]

        return await self.read(read)

    async def _read_value(self, query: str, parameters: dict[str, object]) -> float | None:
        def read(connection: sqlite3.Connection) -> float | None:
            row = connection.execute(self._queries[query], parameters).fetchone()
            return None if row is None or row[0] is None else float(row[0])

        return await self.read(read)

    def _find(self, connection: sqlite3.Connection, request_id: str) -> Job | None:
        key = {"request_id": request_id}
        row = connection.execute(self._queries["get_job"], key).fetchone()
        if row is None:
            return None
        if row["http_status"] is None:
            return job_of(row)
        owned = connection.execute(self._queries["files_of_job"], key).fetchall()
        return job_of(row, tuple(file_of(file_row) for file_row in owned))

    def _apply(self, connection: sqlite3.Connection, old: Job, transition: Transition) -> Change:
        new = transition(old)
        connection.execute(self._queries["update_job"], row_of(new))
        if old.outcome is None and new.outcome is not None:
            for file in new.outcome.files:
                row = {**asdict(file), "request_id": new.request_id}
                connection.execute(self._queries["insert_file"], row)
            if new.webhook_url:
                webhook = {
                    "request_id": new.request_id,
                    "url": new.webhook_url,
                    "body": webhook_body(new),
                    "now": new.completed_at,
                }
                connection.execute(self._queries["insert_webhook"], webhook)
        return old, new

    def _follow(self, changes: list[Change]) -> None:
        for old, new in changes:
            self.backlog.follow(old, new)

    def _follow_erased(self, erased: tuple[int, list[sqlite3.Row]]) -> None:
        for row in erased[1]:
            if row["is_upload"]:
                self.usage.remove(row["owner"], disk_bytes(row["size_bytes"]))


def _next_queued(
    models: Collection[Model], prepared: Collection[str], limit: int
) -> dict[str, object]:
    """Return the parameters of `next_queued`; a negative limit is none."""
    return {
        "models": json.dumps(list(models)),
        "prepared": json.dumps(list(prepared)),
        "limit": limit,
    }
