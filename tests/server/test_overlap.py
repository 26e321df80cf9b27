"""Two requests at one runner: while the images of one are encoded, the next is drawn."""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import server.attempts
import server.worker
from server import jobs
from server.files import FileStore
from server.jobs import Job, JobStatus
from server.runners.connection import RunnerAbsentError
from server.runners.local import Generated, LocalRunner, RunnerState
from server.settings import Settings
from tests.server.test_dispatcher import WAIT_SECONDS, Box

pytestmark = pytest.mark.anyio


@pytest.fixture
async def box(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Box]:
    """Return a working box that wastes no time between two runners."""
    monkeypatch.setattr(server.worker, "FIRST_RESPAWN_SECONDS", 0.001)
    box = Box(settings)
    await box.store.open()
    box.dispatcher.start()
    yield box
    await box.dispatcher.stop(0)
    await box.store.close()


@pytest.fixture
def gates(tmp_path: Path) -> tuple[Path, Path]:
    """Return the files that let the first request be encoded, and the second be drawn."""
    return tmp_path / "encoded", tmp_path / "drawn"


async def drawn(box: Box, request_id: str) -> None:
    """Wait until all of a request is drawn."""
    async with asyncio.timeout(WAIT_SECONDS):
        with box.events.watch(request_id) as changed:
            while not any("decoded" in line.message for line in box.events.read_log(request_id)):
                changed.clear()
                await changed.wait()


async def job_of(box: Box, request_id: str) -> Job:
    """Return the job as it is now."""
    job = await box.store.get(request_id)
    assert job is not None
    return job


async def submit_both(
    box: Box, gates: tuple[Path, Path], first: str = "encode-wait", second: str = "hold"
) -> None:
    """Have the request `first` at its encoding and the request `second` at its drawing."""
    await box.submit("first", f"{first} {gates[0]}")
    await drawn(box, "first")
    await box.submit("second", f"{second} {gates[1]}")
    await box.running("second")


async def charges(box: Box, request_id: str) -> tuple[int, int]:
    """Return how many attempts and deaths of runners a request was charged with."""
    job = await job_of(box, request_id)
    return job.attempts, job.runner_deaths


async def began_after(box: Box, request_id: str) -> bool:
    """Say whether a request was only claimed when the first of all others was over."""
    started_at = (await job_of(box, request_id)).started_at
    completed_at = box.completed[0].completed_at
    return started_at is not None and completed_at is not None and started_at >= completed_at


async def test_the_next_is_drawn_while_one_is_encoded(box: Box, gates: tuple[Path, Path]) -> None:
    """The second makes steps while the first has no outcome yet, and both end well."""
    await submit_both(box, gates)
    assert (await job_of(box, "first")).outcome is None
    gates[0].touch()
    assert (await box.outcome("first")).http_status == 200
    assert (await job_of(box, "second")).outcome is None
    gates[1].touch()
    assert (await box.outcome("second")).http_status == 200
    assert [await charges(box, request_id) for request_id in ("first", "second")] == [(1, 0)] * 2


async def test_no_third_is_begun(box: Box, gates: tuple[Path, Path]) -> None:
    """With one at its encoding and one drawn behind it, the third waits for either to end."""
    await submit_both(box, gates)
    await box.submit("third", "plain")
    gates[1].touch()
    await drawn(box, "second")
    gates[0].touch()
    for request_id in ("first", "second", "third"):
        assert (await box.outcome(request_id)).http_status == 200
    assert await began_after(box, "third")


async def test_waiting_is_no_inference(box: Box, gates: tuple[Path, Path]) -> None:
    """The seconds of a request are those of its drawing alone, however long it is encoded."""
    clock = asyncio.get_running_loop().time
    await box.submit("first", f"encode-wait {gates[0]}")
    await drawn(box, "first")
    first_drawn = clock()
    await box.submit("second", f"hold {gates[1]}")
    await box.running("second")
    gates[1].touch()
    await drawn(box, "second")
    seconds = clock() - first_drawn
    gates[0].touch()
    for request_id in ("first", "second"):
        inference_seconds = (await box.outcome(request_id)).inference_seconds
        assert inference_seconds is not None
        assert inference_seconds < seconds


async def test_a_death_loses_neither(box: Box, gates: tuple[Path, Path]) -> None:
    """Both wait again, charged with one death, and are made by the next runner in their order."""
    await submit_both(box, gates)
    pid = box.runner.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for gate in gates:
        gate.touch()
    for request_id in ("first", "second"):
        assert (await box.outcome(request_id)).http_status == 200
        assert await charges(box, request_id) == (2, 1)
    assert [job.request_id for job in box.completed] == ["first", "second"]
    assert box.runner.pid not in (pid, None)


async def test_who_is_drawn_to_death_takes_nobody_along(box: Box, gates: tuple[Path, Path]) -> None:
    """Who was encoded at the first death is made alone, and is at no other."""
    await box.submit("first", f"encode-wait {gates[0]}")
    await drawn(box, "first")
    await box.submit("second", "die")
    await box.wait("first", lambda job: job.runner_deaths == 1)
    gates[0].touch()
    assert (await box.outcome("second")).error_type == "runner_disconnected"
    assert (await box.outcome("first")).http_status == 200
    assert await charges(box, "first") == (2, 1)
    assert (await job_of(box, "second")).attempts == jobs.MAX_RUNNER_DEATHS


async def test_who_is_encoded_to_death_takes_nobody_along(
    box: Box, gates: tuple[Path, Path]
) -> None:
    """Nothing is drawn beside a request that was at a death before."""
    await submit_both(box, gates, "encode-die")
    for gate in gates:
        gate.touch()
    assert (await box.outcome("first")).error_type == "runner_disconnected"
    assert (await box.outcome("second")).http_status == 200
    assert await charges(box, "second") == (2, 1)
    assert (await job_of(box, "first")).attempts == jobs.MAX_RUNNER_DEATHS


async def test_a_lost_device_spares_what_is_drawn(box: Box, gates: tuple[Path, Path]) -> None:
    """The runner ends only when the request before is encoded, which costs that one nothing."""
    await box.submit("first", f"encode-wait {gates[0]}")
    await drawn(box, "first")
    await box.submit("second", f"once {gates[1]} lost")
    async with asyncio.timeout(WAIT_SECONDS):
        while not gates[1].exists():  # noqa: ASYNC110  (the runner tells nobody)
            await asyncio.sleep(0)
    gates[0].touch()
    for request_id, expected in (("first", (1, 0)), ("second", (2, 1))):
        assert (await box.outcome(request_id)).http_status == 200
        assert await charges(box, request_id) == expected


async def test_a_cancel_of_the_one_that_is_drawn(box: Box, gates: tuple[Path, Path]) -> None:
    """It stops at its next step, and the one that is encoded is made."""
    await submit_both(box, gates)
    await box.dispatcher.cancel("second")
    gates[0].touch()
    assert (await box.outcome("second")).http_status == 499
    assert (await box.outcome("first")).http_status == 200


async def test_a_cancel_of_the_one_that_is_encoded(box: Box, gates: tuple[Path, Path]) -> None:
    """It comes too late, and the one that is drawn does not hear of it, nor loses its own."""
    await submit_both(box, gates)
    await box.dispatcher.cancel("second")
    await box.dispatcher.cancel("first")
    await box.submit("third", f"hold {gates[1]}")
    gates[0].touch()
    assert (await box.outcome("first")).http_status == 200
    assert (await box.outcome("second")).http_status == 499
    gates[1].touch()
    assert (await box.outcome("third")).http_status == 200


async def test_a_picture_that_cannot_be_encoded(box: Box, gates: tuple[Path, Path]) -> None:
    """Its request fails alone and without our internals; the runner goes on with the next."""
    await submit_both(box, gates, "encode-error")
    pid = box.runner.pid
    gates[0].touch()
    outcome = await box.outcome("first")
    assert (outcome.http_status, outcome.error_type) == (500, "runner_server_error")
    assert "secret" not in outcome.body
    gates[1].touch()
    assert (await box.outcome("second")).http_status == 200
    assert box.runner.pid == pid


async def test_a_drain_lets_both_finish(box: Box, gates: tuple[Path, Path]) -> None:
    """Both get their outcome, and what waits behind them is not begun."""
    await submit_both(box, gates)
    await box.submit("third", "plain")
    stopping = asyncio.create_task(box.dispatcher.stop(WAIT_SECONDS))
    for gate in gates:
        gate.touch()
    await stopping
    for request_id in ("first", "second"):
        assert (await box.outcome(request_id)).http_status == 200
    assert await charges(box, "third") == (0, 0)


async def test_a_stop_puts_both_back(box: Box, gates: tuple[Path, Path]) -> None:
    """Neither is charged, and the runner is gone."""
    await submit_both(box, gates)
    await box.dispatcher.stop(0)
    for request_id in ("first", "second"):
        job = await job_of(box, request_id)
        assert (job.status, job.attempts, job.runner_deaths) == (JobStatus.IN_QUEUE, 0, 0)
    assert box.runner.state is RunnerState.STOPPED


async def test_a_disk_that_refuses_holds_the_next_up(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a finished image cannot be stored nothing more is claimed, though the device idles."""
    monkeypatch.setattr(server.attempts, "STORAGE_RETRY_SECONDS", 0.001)
    write, refused = FileStore.write, asyncio.Event()
    loop = asyncio.get_running_loop()
    has_room = False

    def refuse(files: FileStore, data: bytes, suffix: str) -> str:
        if not has_room:
            loop.call_soon_threadsafe(refused.set)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(files, data, suffix)

    monkeypatch.setattr(FileStore, "write", refuse)
    await box.submit("first", "plain")
    async with asyncio.timeout(WAIT_SECONDS):
        await refused.wait()
        refused.clear()
        await refused.wait()
    problem = box.dispatcher.problem or ""
    await box.submit("second", "plain")
    has_room = True
    assert problem.startswith("storage: ")
    for request_id in ("first", "second"):
        assert (await box.outcome(request_id)).http_status == 200
    assert await began_after(box, "second")


async def test_a_runner_that_was_gone_before_costs_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that finds no runner when its turn comes waits again, without a charge."""
    run, absences = LocalRunner.run, 2

    async def be_absent(runner: LocalRunner, *arguments: Any) -> Generated:
        nonlocal absences
        absences -= 1
        if absences >= 0:
            raise RunnerAbsentError("the runner is not running")
        return await run(runner, *arguments)

    monkeypatch.setattr(LocalRunner, "run", be_absent)
    await box.submit("one", "plain")
    assert (await box.outcome("one")).http_status == 200
    assert await charges(box, "one") == (1, 0)
