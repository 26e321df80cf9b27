"""The sender when something dies, refuses or is gone: nothing is lost, little is sent twice."""

import asyncio
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from server import webhooks
from server.delivery import Result, Verdict
from server.store import StoreUnavailableError
from server.store.outbox import Outbox
from server.webhooks import RETRY_SECONDS
from tests.server.receivers import Receiver, is_from_fal, silence, status
from tests.server.webhook_box import WAIT_SECONDS, WALL_START, Box, FakeCarrier

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
CHILD_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
CHILD_SECONDS = 60


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """Return a box with an open store; its sender is stopped at the end."""
    async with Box(tmp_path) as box:
        yield box


async def test_what_a_stop_cuts_off_is_sent_again(box: Box) -> None:
    """With the same id and the same body, by a new sender over the reopened store."""
    async with Receiver(silence, status(200)) as receiver:
        sender = await box.start()
        await box.finish("a", receiver.url())
        await receiver.wait(1)
        await sender.stop()
        row = await box.row("a")
        assert (row["state"], row["attempts"]) == ("pending", 0)
        await box.store.close()
        async with Box(box.data_dir) as reopened:
            await reopened.start()
            assert await reopened.result() == "delivered"
        first, second = receiver.received
    assert (first.request_id, first.body) == (second.request_id, second.body)
    for item in (first, second):
        assert is_from_fal(reopened.signer.jwks(), item.headers, item.body, WALL_START)


async def test_a_stop_gives_time_to_what_is_under_way(box: Box) -> None:
    """An attempt whose answer is coming is not sent twice."""
    go_on = asyncio.Event()

    async def answer_late(writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await status(200)(writer)

    async with Receiver(answer_late) as receiver:
        sender = await box.start()
        await box.finish("a", receiver.url())
        await receiver.wait(1)
        stopping = asyncio.create_task(sender.stop(WAIT_SECONDS))
        go_on.set()
        await stopping
        await sender.stop()
    assert await box.outbox.counts() == {"delivered": 1}


async def test_a_refused_record_sends_nothing_twice(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the receiver has it, the mark waits, and the letter is not sent again."""
    monkeypatch.setattr(webhooks, "STORAGE_RETRY_SECONDS", 0.01)
    refusals = 3

    class FullOutbox(Outbox):
        """An outbox whose first marks the storage refuses."""

        async def mark_delivered(self, request_id: str) -> None:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise StoreUnavailableError("database or disk is full")
            await super().mark_delivered(request_id)

    async with Receiver() as receiver:
        await box.start(outbox=FullOutbox(box.store))
        await box.finish("a", receiver.url())
        assert await box.result() == "delivered"
        assert refusals == 0
        assert len(receiver.received) == 1


async def test_an_outbox_that_cannot_be_read_is_read_again(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A locked database stops nothing for good."""
    monkeypatch.setattr(webhooks, "STORAGE_RETRY_SECONDS", 0.01)
    failures = {"due": 2, "letter": 2}

    class LockedOutbox(Outbox):
        """An outbox whose first reads fail."""

        def _fail(self, name: str) -> None:
            if failures[name]:
                failures[name] -= 1
                raise StoreUnavailableError("database is locked")

        async def due(self, now: float, limit: int) -> Any:
            self._fail("due")
            return await super().due(now, limit)

        async def letter(self, request_id: str, now: float) -> Any:
            self._fail("letter")
            return await super().letter(request_id, now)

    async with Receiver() as receiver:
        await box.start(outbox=LockedOutbox(box.store))
        await box.finish("a", receiver.url())
        assert await box.result() == "delivered"
        assert len(receiver.received) == 1


async def test_a_letter_that_breaks_the_sender_is_given_up_in_the_end(box: Box) -> None:
    """It counts as a failed attempt each time, and the others are delivered meanwhile."""

    def decide(url: str) -> Verdict:
        if "bad" in url:
            raise ValueError("a fault of ours")
        return Verdict(Result.DELIVERED)

    await box.start(FakeCarrier(decide))
    await box.finish("bad", "http://bad.example")
    await box.finish("good", "http://good.example")
    assert sorted([await box.result(), await box.result()]) == ["delivered", "failed"]
    for delay in RETRY_SECONDS:
        await box.advance(delay)
        last = await box.result()
    assert last == "abandoned"
    assert await box.outbox.counts() == {"abandoned": 1, "delivered": 1}


async def test_an_erased_job_s_webhook_is_not_sent(box: Box) -> None:
    """Between the look at the outbox and the attempt the row may go."""
    sent: list[str] = []

    class StaleOutbox(Outbox):
        """An outbox whose search gives a row that is gone by the time of the attempt."""

        async def letter(self, request_id: str, now: float) -> Any:
            def erase(connection: sqlite3.Connection) -> None:
                connection.execute("DELETE FROM webhooks")

            await box.store.write(erase)
            sent.append(request_id)
            return await super().letter(request_id, now)

    carrier = FakeCarrier(lambda _url: Verdict(Result.DELIVERED))
    with capture_logs() as logs:
        await box.start(carrier, outbox=StaleOutbox(box.store))
        await box.finish("a", "http://hook.example")
        async with asyncio.timeout(WAIT_SECONDS):
            while not sent:
                await box.settle()
        await box.settle()
    assert (carrier.sent, logs) == ([], [])
    assert box.results.empty()


async def test_kills_lose_no_webhook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process is killed again and again between taking, sending and marking.

    The receiver's ledger has every webhook at the end; what came twice had the same body. The
    variables WEBHOOK_KILLS, WEBHOOK_KILL_JOBS and WEBHOOK_KILL_SEED make longer runs.
    """
    seed = int(os.environ.get("WEBHOOK_KILL_SEED", "1"))
    job_count = int(os.environ.get("WEBHOOK_KILL_JOBS", "60"))
    kill_count = int(os.environ.get("WEBHOOK_KILLS", "10"))
    dice = random.Random(seed)
    kills_left = kill_count
    child: asyncio.subprocess.Process | None = None

    async def answer(writer: asyncio.StreamWriter) -> None:
        """Acknowledge; sometimes kill the sender, before it hears of it or just after."""
        nonlocal kills_left
        kill = kills_left > 0 and dice.random() < 2 * kill_count / job_count
        if not kill or dice.random() < 0.5:
            await status(200)(writer)
        if kill and child and child.returncode is None:
            kills_left -= 1
            child.kill()
            await child.wait()

    command = [sys.executable, "-m", "tests.server.webhook_child", str(tmp_path)]
    async with Receiver(answer) as receiver:
        exits: list[int] = []
        while 0 not in exits:
            child = await asyncio.create_subprocess_exec(
                *command, receiver.url(""), str(job_count), cwd=ROOT, env=CHILD_ENVIRONMENT
            )
            exits.append(await asyncio.wait_for(child.wait(), CHILD_SECONDS))
            assert exits[-1] in (0, -signal.SIGKILL), f"seed {seed}: {exits}"
        received = receiver.received
    async with Box(tmp_path) as box:
        assert await box.outbox.counts() == {"delivered": job_count}
        box.signer.load()
        for item in received:
            assert is_from_fal(box.signer.jwks(), item.headers, item.body, time.time())
    bodies: dict[str, set[bytes]] = {}
    for item in received:
        bodies.setdefault(item.request_id, set()).add(item.body)
    lost = {f"job{number}" for number in range(job_count)} - set(bodies)
    changed = {request_id for request_id, found in bodies.items() if len(found) > 1}
    with capsys.disabled():
        print(  # noqa: T201
            f"\nG2, seed {seed}: {job_count} webhooks, {len(exits) - 1} kills: {len(lost)} lost, "
            f"{len(received) - len(bodies)} sent again, {len(changed)} of them changed"
        )
    assert (lost, changed) == (set(), set())
    assert len(exits) > kill_count // 2  # two at once may have killed the same process
