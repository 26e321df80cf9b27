"""The sender under load: no receiver takes the time of another, or of the store."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from server.delivery import Result, Verdict
from server.store.outbox import Outbox
from server.webhooks import FAILURE_PAUSE_SECONDS, MAX_ATTEMPTS_AT_ONCE_PER_HOST
from tests.server.receivers import Receiver, drip, silence, status
from tests.server.webhook_box import WAIT_SECONDS, Box, FakeCarrier

pytestmark = pytest.mark.anyio


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """Return a box with an open store; its sender is stopped at the end."""
    async with Box(tmp_path) as box:
        yield box


async def test_a_host_gets_two_attempts_at_once(box: Box) -> None:
    """Also when it is spelled in several ways; the next begins when one has ended."""
    async with Receiver(silence) as receiver:
        await box.start(None, "localhost", "LOCALHOST")
        for number in range(6):
            user = f"user{number % 2}@" if number % 3 else ""
            url = receiver.url().replace("127.0.0.1", f"{user}localhost")
            await box.finish(f"job{number}", url)
        await receiver.wait(2)
        await box.settle()
        assert receiver.connections == 2


async def test_all_hosts_together_get_sixteen_attempts_at_once(box: Box) -> None:
    """A thousand receivers cannot take all of this process's time or sockets."""
    async with AsyncExitStack() as stack:
        receivers = [
            await stack.enter_async_context(Receiver(silence, host=f"127.0.0.{number}"))
            for number in range(1, 13)
        ]
        for receiver in receivers:
            for number in range(3):
                await box.finish(f"{receiver.port}-{number}", receiver.url())
        await box.start()
        async with asyncio.timeout(WAIT_SECONDS):
            while sum(len(receiver.received) for receiver in receivers) < 16:
                await box.settle()
        await box.settle()
        assert sum(receiver.connections for receiver in receivers) == 16
        assert max(receiver.connections for receiver in receivers) == 2


async def test_nothing_due_means_nothing_to_do(box: Box) -> None:
    """The sender sleeps until the next is due; it does not ask the store every so often."""
    looks = 0

    class CountedOutbox(Outbox):
        """An outbox that counts how often it is searched."""

        async def due(self, now: float, limit: int) -> Any:
            nonlocal looks
            looks += 1
            return await super().due(now, limit)

    await box.start(FakeCarrier(lambda _url: Verdict(Result.FAILED, "no")), outbox=None)
    await box.finish("a", "http://hook.example")
    assert await box.result() == "failed"
    assert box.sender is not None
    await box.sender.stop()
    await box.start(
        FakeCarrier(lambda _url: Verdict(Result.FAILED)), outbox=CountedOutbox(box.store)
    )
    for _ in range(200):
        await box.outbox.counts()
    assert looks == 1


def describe(seconds: Sequence[float]) -> str:
    """Return the median and the 99th percentile in milliseconds."""
    return (
        f"p50 {percentile(seconds, 50) * 1000:.1f} ms, p99 {percentile(seconds, 99) * 1000:.1f} ms"
    )


def percentile(seconds: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of the values do not exceed."""
    return sorted(seconds)[min(len(seconds) - 1, len(seconds) * percent // 100)]


async def time_completions(box: Box, prefix: str, url: str, count: int) -> list[float]:
    """Accept and complete jobs one after the other; return the seconds that each took."""
    seconds = []
    for number in range(count):
        begun = time.monotonic()
        await box.finish(f"{prefix}{number}", url)
        seconds.append(time.monotonic() - begun)
    return seconds


@pytest.mark.parametrize("how", ["refuses connections", "never answers"])
async def test_a_dead_receiver_s_thousand_delay_nobody(
    box: Box, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither another's deliveries nor the store, while its backlog is worked through.

    A completion is two commits; those timed alone are for the dead receiver too.
    """
    box.failure_pause_seconds = FAILURE_PAUSE_SECONDS
    async with Receiver(silence) as dead, Receiver(host="127.0.0.2") as good:
        dead_url = dead.url() if how == "never answers" else "http://127.0.0.1:1/"
        alone = await time_completions(box, "dead", dead_url, 1000)
        await box.start()
        beside: list[float] = []
        delays: list[float] = []
        for number in range(200):
            begun = time.monotonic()
            beside += await time_completions(box, f"good{number}-", good.url(), 1)
            received = await good.wait(number + 1)
            delays.append(received[-1].at - begun)
    with capsys.disabled():
        print(  # noqa: T201
            f"\nG1, 1000 for a receiver that {how}: completion in the store {describe(alone)} "
            f"alone, {describe(beside)} beside it; deliveries to another {describe(delays)}"
        )
    assert percentile(delays, 99) < 1
    # The median: single commits wait for whatever else the disk has to sync.
    assert percentile(beside, 50) < max(0.02, 4 * percentile(alone, 50))


async def test_one_slow_host_starves_none_of_nine(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    """A receiver that answers a byte at a time has a backlog; nine others hear at once."""
    async with AsyncExitStack() as stack:
        slow = await stack.enter_async_context(Receiver(drip))
        good = [
            await stack.enter_async_context(Receiver(host=f"127.0.0.{number}"))
            for number in range(2, 11)
        ]
        await box.start()
        await time_completions(box, "slow", slow.url(), 50)
        begun: dict[str, float] = {}
        for number in range(20):
            for index, receiver in enumerate(good):
                request_id = f"good{index}-{number}"
                begun[request_id] = time.monotonic()
                await box.finish(request_id, receiver.url())
        for receiver in good:
            await receiver.wait(20)
        delays = [
            item.at - begun[item.request_id] for receiver in good for item in receiver.received
        ]
        assert slow.connections == 2
    with capsys.disabled():
        print(f"\nG4, nine receivers beside a dripping one: {describe(delays)}")  # noqa: T201
    assert len(delays) == 180
    assert percentile(delays, 99) < 1


async def test_a_failing_host_gets_few_attempts_a_second(box: Box) -> None:
    """A failed attempt keeps its place a while, so that a dead receiver costs little here."""
    box.failure_pause_seconds = 0.2
    async with Receiver(status(500)) as receiver:
        await box.start()
        await time_completions(box, "job", receiver.url(), 10)
        received = await receiver.wait(10)
    pairs = zip(received, received[MAX_ATTEMPTS_AT_ONCE_PER_HOST:], strict=False)
    assert min(later.at - earlier.at for earlier, later in pairs) >= 0.2
