"""The store against a model, in any order of changes, crashes and reopenings: P2 and P3."""

import asyncio
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
)

from pipelines.types import Model
from server import jobs
from server.jobs import IllegalTransitionError, Job, JobStatus, Need, Outcome, Priority, StoredFile
from server.store import Store
from server.store.outbox import Outbox

ENDPOINTS = ("fal-ai/flux-2", "fal-ai/flux-2/flash", "fal-ai/flux-2-dev")
MODELS = (Model.DEV, Model.KLEIN_4B)
KEEP_SECONDS = 50.0
EVERYTHING = "SELECT * FROM jobs ORDER BY seq"
FILES = "SELECT name, request_id, expires_at FROM files ORDER BY name"


@dataclass
class Known:
    """What the model knows of one job."""

    request_id: str
    endpoint_id: str
    seq: int
    priority: int
    needs: Need
    model: Model
    start_by: float | None
    has_webhook: bool
    status: str = "IN_QUEUE"
    attempts: int = 0
    runner_deaths: int = 0
    cancel_requested: bool = False
    result: str | None = None
    expires_at: float | None = None
    webhook_pending: bool = False
    files: dict[str, float | None] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """Does to a real store and to a dict the same things, and compares them after each."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="store-"))
        self.loop = asyncio.Runner()
        self.folders = 0
        self.now = 1000.0
        self.submitted = 0
        self.outcomes = 0
        self.jobs: dict[str, Known] = {}
        self.orphans: dict[str, float | None] = {}
        self.store = self.open(self.base / "0")

    def open(self, folder: Path) -> Store:
        """Open a store on a folder."""
        store = Store(folder)
        self.run(store.open())
        return store

    def run(self, awaited: Any) -> Any:
        """Wait for what the store does."""

        async def wait() -> Any:
            return await awaited

        return self.loop.run(wait())

    def queued(self) -> list[Known]:
        """Return the queued jobs in the order in which they must be claimed."""
        waiting = [job for job in self.jobs.values() if job.status == "IN_QUEUE"]
        return sorted(waiting, key=lambda job: (job.priority, job.seq))

    def running(self) -> list[Known]:
        """Return the running jobs, oldest first."""
        return [job for job in self.jobs.values() if job.status == "IN_PROGRESS"]

    @rule(
        target=ids,
        priority=st.sampled_from(Priority),
        needs=st.sampled_from(Need),
        model=st.sampled_from(MODELS),
        endpoint_id=st.sampled_from(ENDPOINTS),
        start_seconds=st.none() | st.integers(1, 30),
        has_webhook=st.booleans(),
    )
    def submit(
        self,
        priority: Priority,
        needs: Need,
        model: Model,
        endpoint_id: str,
        start_seconds: int | None,
        has_webhook: bool,
    ) -> str:
        """Accept a job."""
        self.submitted += 1
        start_by = self.now + start_seconds if start_seconds else None
        job = Job(
            request_id=f"job{self.submitted}",
            endpoint_id=endpoint_id,
            owner="local",
            origin="http://box",
            input="{}",
            created_at=self.now,
            priority=priority,
            needs=needs,
            model=model,
            start_by=start_by,
            webhook_url="http://receiver/" if has_webhook else None,
        )
        stored = self.run(self.store.insert(job))
        assert stored.seq == self.submitted
        known = Known(
            *(job.request_id, endpoint_id, stored.seq, int(priority), needs, model),
            start_by=start_by,
            has_webhook=has_webhook,
        )
        self.jobs[job.request_id] = known
        return job.request_id

    @rule(prepared=st.lists(ids, max_size=3), models=st.sets(st.sampled_from(MODELS)))
    def claim(self, prepared: list[str], models: set[Model]) -> None:
        """Claim: the most urgent, and of those the oldest, of what has all that it needs."""
        firsts = self.run(self.store.first_queued(models, prepared))
        claimed = self.run(self.store.claim(self.now, prepared, models))
        waiting = [
            job
            for job in self.queued()
            if job.model in models and (job.needs is Need.NOTHING or job.request_id in prepared)
        ]
        of_each = {job.model: job.request_id for job in reversed(waiting)}
        assert {job.model: job.request_id for job in firsts} == of_each
        assert [job.request_id for job in firsts] == [
            job.request_id for job in waiting if job.request_id in of_each.values()
        ]
        assert (claimed and claimed.request_id) == (waiting[0].request_id if waiting else None)
        if waiting:
            waiting[0].status = "IN_PROGRESS"
            waiting[0].attempts += 1

    @rule(request_id=ids, runner_died=st.booleans())
    def requeue(self, request_id: str, runner_died: bool) -> None:
        """Put a running job back; nothing else can be."""

        def change(job: Job) -> Job:
            return jobs.requeue(job, runner_died=runner_died, charge_attempt=runner_died)

        known = self.jobs.get(request_id)
        if self.change(request_id, change, known and known.status == "IN_PROGRESS") and known:
            known.status = "IN_QUEUE"
            known.attempts -= not runner_died
            known.runner_deaths += runner_died

    @rule(
        request_id=ids,
        http_status=st.sampled_from([200, 422, 500]),
        files=st.lists(st.none() | st.integers(1, 100), max_size=2),
    )
    def finish(self, request_id: str, http_status: int, files: list[int | None]) -> None:
        """Give an outcome; only the first one counts."""
        outcome = self.make_outcome(http_status, files)
        known = self.jobs.get(request_id)
        allowed = known and known.status != "COMPLETED"
        if self.change(request_id, lambda job: jobs.complete(job, outcome, self.now), allowed):
            self.note(known, outcome)

    @rule(request_id=ids)
    def cancel(self, request_id: str) -> None:
        """Cancel: a queued job is over, a running one is asked, a finished one stays."""
        outcome = self.make_outcome(499, [])
        known = self.jobs.get(request_id)
        allowed = known and known.status != "COMPLETED"
        if self.change(request_id, lambda job: jobs.cancel(job, outcome, self.now), allowed):
            assert known is not None
            if known.status == "IN_PROGRESS":
                known.cancel_requested = True
            else:
                self.note(known, outcome)

    @rule()
    def end_missed_starts(self) -> None:
        """End what was not begun in its caller's time, and nothing that was."""
        missed = self.run(self.store.missed_starts(self.now))
        late = [job for job in self.queued() if job.start_by and job.start_by <= self.now]
        assert sorted(missed) == sorted(job.request_id for job in late)
        for known in late:
            self.end_in_queue(known, self.make_outcome(504, []))

    def end_in_queue(self, known: Known, outcome: Outcome) -> None:
        """End a job that was never begun."""
        self.change(
            known.request_id, lambda job: jobs.end_in_queue(job, outcome, self.now), allowed=True
        )
        self.note(known, outcome)

    @rule(request_id=ids)
    def deliver(self, request_id: str) -> None:
        """Settle a webhook; only then may its result be erased."""
        known = self.jobs.get(request_id)
        if known and known.webhook_pending:
            self.run(Outbox(self.store).mark_delivered(request_id))
            known.webhook_pending = False

    @rule(seconds=st.integers(1, 100))
    def pass_time(self, seconds: int) -> None:
        """Move the clock on."""
        self.now += seconds

    @rule()
    def expire(self) -> None:
        """Erase what is past its time; hand out the files' names exactly once."""
        erased = [
            job
            for job in self.jobs.values()
            if job.expires_at and job.expires_at <= self.now and not job.webhook_pending
        ]
        for job in erased:
            del self.jobs[job.request_id]
            self.orphans |= job.files
        owners = [self.orphans, *(job.files for job in self.jobs.values())]
        expected = []
        for owner in owners:
            gone = [name for name, end in owner.items() if end is not None and end <= self.now]
            expected += gone
            for name in gone:
                del owner[name]
        assert sorted(self.run(self.store.erase_expired(self.now))) == sorted(expected)

    @rule(crashed=st.booleans())
    def restart(self, crashed: bool) -> None:
        """Close and open, or start on the image of a crash in the middle of a change."""
        old, self.folders = self.store, self.folders + 1
        folder = self.base / str(self.folders)
        if crashed:
            self.run(self.half_a_change(old, folder))
        self.run(old.close())
        self.store = self.open(folder if crashed else old.path.parent)
        before = self.running()
        requeued = self.run(self.store.requeue_all_in_progress())
        assert [job.request_id for job in requeued] == [job.request_id for job in before]
        for job in before:
            job.status = "IN_QUEUE"
            job.attempts -= 1

    async def half_a_change(self, store: Store, folder: Path) -> None:
        """Copy the files while a transaction has changed everything and not committed."""

        def work() -> None:
            connection = store._write_connection
            assert connection is not None
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE jobs SET attempts = attempts + 100")
            connection.execute("DELETE FROM files")
            folder.mkdir()
            for path in store.path.parent.glob("queue.sqlite3*"):
                if not path.name.endswith("-shm"):
                    shutil.copy(path, folder)
            connection.execute("ROLLBACK")

        await asyncio.get_running_loop().run_in_executor(store._writer, work)

    @invariant()
    def rows_are_the_model(self) -> None:
        """Every accepted job is there as it should be, with one result that never changes."""

        def read(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            return connection.execute(EVERYTHING).fetchall(), connection.execute(FILES).fetchall()

        found, files = self.run(self.store.read(read))
        assert [row["request_id"] for row in found] == list(self.jobs)
        for row, known in zip(found, self.jobs.values(), strict=True):
            assert row["status"] == known.status
            assert row["result"] == known.result
            assert (row["attempts"], row["runner_deaths"]) == (known.attempts, known.runner_deaths)
            assert row["cancel_requested"] == known.cancel_requested
            assert row["expires_at"] == known.expires_at
        owners = [self.orphans, *(job.files for job in self.jobs.values())]
        expected = {name: end for owner in owners for name, end in owner.items()}
        assert {row["name"]: row["expires_at"] for row in files} == expected

    @invariant()
    def backlog_is_the_model(self) -> None:
        """The places in memory are those of the rows."""
        backlog, waiting = self.store.backlog, self.queued()
        assert len(backlog) == len(waiting)
        assert backlog.in_progress == len(self.running())
        for place, known in enumerate(waiting):
            job = self.run(self.store.get(known.request_id))
            assert backlog.count_ahead(job) == place
        by_app = backlog.count_by_app()
        assert sum(by_app.values()) == len(waiting)
        for (app, priority), count in by_app.items():
            mine = [job for job in waiting if jobs.app_id_of(job.endpoint_id) == app]
            assert count == sum(job.priority == priority for job in mine)

    def change(self, request_id: str, transition: Any, allowed: object) -> bool:
        """Change the job if the model allows it; else nothing must change."""
        if request_id not in self.jobs:
            assert self.run(self.store.change(request_id, transition)) is None
            return False
        if allowed:
            changed = self.run(self.store.change(request_id, transition))
            assert changed.request_id == request_id
            return True
        with pytest.raises(IllegalTransitionError):
            self.run(self.store.change(request_id, transition))
        return False

    def make_outcome(self, http_status: int, files: list[int | None]) -> Outcome:
        """Make an outcome like no other; its files live so many seconds, or for good."""
        self.outcomes += 1
        stored = tuple(
            StoredFile(
                name=f"file{self.outcomes}-{index}",
                content_type="image/png",
                size_bytes=1,
                owner="local",
                expires_at=None if seconds is None else self.now + seconds,
            )
            for index, seconds in enumerate(files)
        )
        body = f'{{"outcome": {self.outcomes}}}'
        return Outcome(http_status=http_status, body=body, keep_seconds=KEEP_SECONDS, files=stored)

    def note(self, known: Known | None, outcome: Outcome) -> None:
        """Note in the model that the job is over."""
        assert known is not None
        known.status = JobStatus.COMPLETED.value
        known.result = outcome.body
        known.expires_at = self.now + outcome.keep_seconds
        known.webhook_pending = known.has_webhook
        known.files = {file.name: file.expires_at for file in outcome.files}

    def teardown(self) -> None:
        """Close the store and delete its folder."""
        self.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.base)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
