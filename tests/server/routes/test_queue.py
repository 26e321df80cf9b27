"""The status stream against a real store: what goes out when, and what is left behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message

from server import jobs
from server.admission import Admission
from server.attempts import Parts
from server.clock import SteadyClock
from server.dispatcher import Dispatcher
from server.errors import FalError
from server.events import Events
from server.files import FileStore
from server.gateway import make_runner
from server.jobs import Job, Outcome
from server.keyfile import KeyFile
from server.keys import Keyring
from server.metrics import Metrics
from server.routes import queue
from server.routes.answers import KEEP_ALIVE, handle_fal_error
from server.routes.auth import AuthMiddleware, Gate
from server.routes.doors import DoorMiddleware
from server.settings import Settings
from server.store import Store
from server.tickets import Tickets
from tests.server.stubs import make_preparer

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30
FIRST, SECOND = "first", "second"


class Box:
    """The queue's routes over a real store; jobs change when the test says so."""

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings.data_dir)
        self.events = Events()
        clock = SteadyClock()
        files = FileStore(settings.data_dir / "files")
        parts = Parts(
            settings=settings,
            store=self.store,
            files=files,
            inputs=make_preparer(settings, files, self.store),
            events=self.events,
            metrics=Metrics(clock, self.store.backlog),
            clock=clock,
            on_completed=lambda _: None,
        )
        dispatcher = Dispatcher(parts, [make_runner(settings, "cpu")])
        admission = Admission(settings, self.store, clock, dispatcher.on_accepted)
        self.app = FastAPI(exception_handlers={FalError: handle_fal_error})
        routes = queue.QueueRoutes(
            self.store, admission, dispatcher, self.events, settings.body_limit_bytes
        )
        self.app.include_router(routes.router)
        keys = Keyring(KeyFile(settings.data_dir / "keys"))
        tickets = Tickets(settings.data_dir / "keys", clock, keys.get)
        self.app.add_middleware(AuthMiddleware, gate=Gate(keys, clock), tickets=tickets)
        self.app.add_middleware(DoorMiddleware)

    async def insert(self, request_id: str) -> Job:
        """Put a request into the queue."""
        job = Job(
            request_id=request_id,
            endpoint_id="fal-ai/flux-2",
            owner="local",
            origin="http://box",
            input="{}",
            created_at=1.0,
        )
        return await self.store.insert(job)

    async def start(self) -> str:
        """Begin the next request as a worker does, and return its id."""
        job = await self.store.claim(2.0)
        assert job is not None
        self.events.start_log(job.request_id)
        self.events.notify(job.request_id)
        return job.request_id

    async def complete(self, request_id: str) -> None:
        """Give a request its outcome as a worker does, with the log that it has."""
        logs = self.events.dump_log(request_id)
        outcome = Outcome(http_status=200, body="{}", keep_seconds=60.0, logs=logs)
        await self.store.change(request_id, lambda job: jobs.complete(job, outcome, 3.0))
        self.events.end_log(request_id)
        self.events.notify(request_id)

    async def lose_attempt(self, request_id: str) -> None:
        """Put a running request back as a worker does whose runner died."""
        await self.store.change(
            request_id, lambda job: jobs.requeue(job, runner_died=True, charge_attempt=True)
        )
        self.events.end_log(request_id)
        self.events.notify(request_id)


class Reader:
    """One caller of the status stream, as the server sees it: it may stop reading, or leave."""

    def __init__(self, box: Box, request_id: str = FIRST, query: str = "logs=1") -> None:
        self._chunks: asyncio.Queue[str | None] = asyncio.Queue()
        self._left = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self.status_code = 0
        self.content_type = ""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
            "method": "GET",
            "scheme": "http",
            "path": f"/queue/fal-ai/flux-2/requests/{request_id}/status/stream",
            "query_string": query.encode(),
            "headers": [(b"host", b"box")],
        }
        self.call = asyncio.create_task(box.app(scope, self._receive, self._send))

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def chunk(self) -> str | None:
        """Return the next piece of the body, None at its end."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._chunks.get()

    async def event(self) -> dict[str, Any] | None:
        """Return the next event, None at the end; comments are skipped, as clients do."""
        while (chunk := await self.chunk()) == KEEP_ALIVE:
            pass
        if chunk is None:
            return None
        assert chunk.startswith("data: ")
        assert chunk.endswith("\n\n")
        found: dict[str, Any] = json.loads(chunk.removeprefix("data: "))
        return found

    async def ended(self) -> None:
        """Wait until the server is through with this caller."""
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.wait({self.call})
        assert self.call.exception() is None

    async def _receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.status_code = message["status"]
            self.content_type = dict(message["headers"])[b"content-type"].decode()
            return
        if message["body"]:
            self._chunks.put_nowait(message["body"].decode("ascii"))
        if not message.get("more_body"):
            self._chunks.put_nowait(None)


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Box]:
    """Return routes over an open store with two queued requests; no task may survive the test."""
    found = Box(settings)
    await found.store.open()
    await found.insert(FIRST)
    await found.insert(SECOND)
    yield found
    assert found.events._watchers == {}
    assert tasks_of_the_server() == set()
    await found.store.close()


def tasks_of_the_server() -> set[str]:
    """Name what runs in this loop beside the test itself, which anyio runs in tasks of its own."""
    coroutines = {str(task.get_coro()) for task in asyncio.all_tasks()}
    return {coroutine for coroutine in coroutines if "TestRunner" not in coroutine}


async def next_words(reader: Reader) -> tuple[str, list[str]]:
    """Return the next event's status and the log lines in it."""
    body = await reader.event()
    assert body is not None
    return body["status"], [line["message"] for line in body["logs"]]


async def test_every_change_is_an_event_and_every_line_comes_once(box: Box) -> None:
    """From the queue to the end; the stream closes after COMPLETED."""
    reader = Reader(box)
    assert await next_words(reader) == ("IN_QUEUE", [])
    await box.start()
    assert await next_words(reader) == ("IN_PROGRESS", [])
    for line in ("one", "two"):
        box.events.log(FIRST, line)
        assert await next_words(reader) == ("IN_PROGRESS", [line])
    box.events.log(FIRST, "three")
    await box.complete(FIRST)
    rest = [await next_words(reader)]
    if rest[0][0] != "COMPLETED":  # whether the last line comes with it is a matter of timing
        rest.append(await next_words(reader))
    assert rest[-1][0] == "COMPLETED"
    assert [line for _, lines in rest for line in lines] == ["three"]
    assert await reader.event() is None
    await reader.ended()
    assert (reader.status_code, reader.content_type) == (200, "text/event-stream; charset=utf-8")


async def test_a_second_attempt_begins_a_new_log(box: Box) -> None:
    """Lines of an attempt that was lost do not count against those of the next one."""
    reader = Reader(box)
    await reader.event()
    await box.start()
    await reader.event()
    box.events.log(FIRST, "lost")
    assert await next_words(reader) == ("IN_PROGRESS", ["lost"])
    await box.lose_attempt(FIRST)
    assert await next_words(reader) == ("IN_QUEUE", [])
    await box.start()
    box.events.log(FIRST, "again")
    lines: list[str] = []
    while not lines:
        word, lines = await next_words(reader)
        assert word == "IN_PROGRESS"
    assert lines == ["again"]
    reader.leave()
    await reader.ended()


async def test_without_logs_a_line_is_no_event(box: Box) -> None:
    """`logs` stays null, and nothing is sent while only the log grows."""
    await box.start()
    reader = Reader(box, query="logs=0")
    body = await reader.event()
    assert body is not None
    assert (body["status"], body["logs"]) == ("IN_PROGRESS", None)
    box.events.log(FIRST, "quiet")
    await box.complete(FIRST)
    body = await reader.event()
    assert body is not None
    assert (body["status"], body["logs"]) == ("COMPLETED", None)
    assert await reader.event() is None
    await reader.ended()


async def test_the_end_is_told_at_once_when_it_is_over_already(box: Box) -> None:
    """Who comes late gets one event, with the whole log."""
    await box.start()
    box.events.log(FIRST, "one")
    await box.complete(FIRST)
    reader = Reader(box)
    assert await next_words(reader) == ("COMPLETED", ["one"])
    assert await reader.event() is None
    await reader.ended()


async def test_moving_up_is_an_event(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place in the queue changes without the request itself changing."""
    monkeypatch.setattr(queue, "POSITION_SECONDS", 0.01)
    reader = Reader(box, SECOND)
    body = await reader.event()
    assert body is not None
    assert body["queue_position"] == 1
    await box.start()
    body = await reader.event()
    assert body is not None
    assert body["queue_position"] == 0
    reader.leave()
    await reader.ended()


async def test_silence_is_broken_by_comments(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing new is told as nothing new, not as the same event again."""
    monkeypatch.setattr(queue, "POSITION_SECONDS", 0.01)
    reader = Reader(box)
    await reader.event()
    assert [await reader.chunk() for _ in range(3)] == [KEEP_ALIVE] * 3
    reader.leave()
    await reader.ended()


@pytest.mark.parametrize("in_progress", [False, True])
async def test_a_caller_who_leaves_leaves_nothing(box: Box, in_progress: bool) -> None:
    """The fixture looks for watchers and tasks; the request itself goes on."""
    if in_progress:
        await box.start()
    readers = [Reader(box) for _ in range(10)]
    for reader in readers:
        await reader.event()
        reader.leave()
        await reader.ended()
    job = await box.store.get(FIRST)
    assert job is not None
    assert job.outcome is None
    assert not job.cancel_requested


async def test_a_reader_who_takes_nothing_and_is_hung_up_on_leaves_nothing(box: Box) -> None:
    """Nobody waits on to send it the rest."""
    reader = Reader(box)
    await reader.event()
    reader.reading.clear()
    await box.start()
    reader.leave()
    await reader.ended()


async def test_a_stop_ends_every_stream(box: Box) -> None:
    """With the last status; who asks afterwards is told once, too."""
    before = Reader(box)
    await before.event()
    box.events.close()
    assert await before.event() is None
    await before.ended()
    after = Reader(box, SECOND)
    assert await next_words(after) == ("IN_QUEUE", [])
    assert await after.event() is None
    await after.ended()


async def test_an_unknown_id_is_404_before_any_event(box: Box) -> None:
    """The answer is JSON and final, so that clients raise."""
    reader = Reader(box, "nobody")
    assert json.loads(await reader.chunk() or "") == {"status": "NOT_FOUND"}
    await reader.ended()
    assert (reader.status_code, reader.content_type) == (404, "application/json")
