"""Several models on one box: runners, real processes, that switch, and models that are broken."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import server.model_folders
import server.turns
import server.worker
from pipelines.types import Model
from server.dispatcher import ModelState
from server.family.endpoint import Order
from server.inputs import InputPreparer
from server.jobs import Job, JobStatus, Need
from server.settings import Settings
from tests.server.test_dispatcher import WAIT_SECONDS, Box

pytestmark = pytest.mark.anyio

DEV, KLEIN = "fal-ai/flux-2", "fal-ai/flux-2/klein/4b"
MakeBox = Callable[..., Box]


@pytest.fixture
async def make_box(
    make_settings: Callable[..., Settings],
    folders: dict[Model, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[MakeBox]:
    """Return a function that makes a box with both models, not begun yet; it is stopped in the end.

    No time is wasted between tries.
    """
    monkeypatch.setattr(server.worker, "FIRST_RESPAWN_SECONDS", 0.001)
    monkeypatch.setattr(server.turns, "RETRY_SECONDS", 0.001)
    made: list[Box] = []

    def make(**changes: object) -> Box:
        factory = "fault_pipelines:by_folder"
        box = Box(make_settings(model=None, models=folders, pipeline_factory=factory, **changes))
        made.append(box)
        return box

    yield make
    for box in made:
        await box.dispatcher.stop(0)
        await box.store.close()


@pytest.fixture
async def box(make_box: MakeBox) -> Box:
    """Return a box with one runner for both models; its dispatcher is not started."""
    box = make_box()
    await box.store.open()
    return box


async def made_by(box: Box, request_id: str) -> str:
    """Return the folder of the model that made a request's images, by the request's own log."""
    outcome = await box.outcome(request_id)
    assert outcome.http_status == 200, outcome.body
    first: str = json.loads(outcome.logs)[0]["message"]
    return first.removeprefix("Started on a fault pipeline of ").removesuffix(".")


async def until(seen: Callable[[], object]) -> None:
    """Wait until something is so that tells nobody."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not seen():  # noqa: ASYNC110  (it tells nobody)
            await asyncio.sleep(0.002)


def words_of(box: Box) -> set[str]:
    """Return how it stands with the models, without saying with which."""
    return {state.word for state in box.dispatcher.model_states.values()}


def order_of(box: Box) -> list[str]:
    """Return the completed requests in the order in which they were begun."""
    begun = sorted(box.completed, key=lambda job: job.started_at or 0.0)
    return [job.request_id for job in begun]


async def job_of(box: Box, request_id: str) -> Job:
    """Return the job as it is now."""
    job = await box.store.get(request_id)
    assert job is not None
    return job


async def test_a_runner_switches_and_each_is_made_by_its_own(box: Box) -> None:
    """What is loaded goes first, then one switch serves all that wait for the other model."""
    for name, endpoint_id in (("d1", DEV), ("k1", KLEIN), ("d2", DEV), ("k2", KLEIN), ("d3", DEV)):
        await box.submit(name, "plain", endpoint_id=endpoint_id)
    box.dispatcher.start()
    for name in ("d1", "d2", "d3"):
        assert await made_by(box, name) == "dev"
    for name in ("k1", "k2"):
        assert await made_by(box, name) == "klein-4b"
    assert order_of(box) == ["d1", "d2", "d3", "k1", "k2"]
    assert box.dispatcher.model_states == {
        Model.DEV: ModelState("loadable"),
        Model.KLEIN_4B: ModelState("loaded"),
    }
    text = box.parts.metrics.render().decode()
    assert 'flux2_model_switches_total{model="klein-4b"} 1.0' in text
    assert 'flux2_model_switches_total{model="dev"} 0.0' in text


async def test_the_first_in_the_queue_says_what_is_loaded_first(box: Box) -> None:
    """No model is loaded only to be given up: the first runner has what is asked for."""
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    box.dispatcher.start()
    assert await made_by(box, "k1") == "klein-4b"
    assert 'model_switches_total{model="klein-4b"} 0.0' in box.parts.metrics.render().decode()


async def test_strict_order_switches_at_every_turn(make_box: MakeBox) -> None:
    """An operator who allows no overtaking gets none."""
    box = make_box(overtake_jobs=0)
    await box.store.open()
    for name, endpoint_id in (("d1", DEV), ("k1", KLEIN), ("d2", DEV)):
        await box.submit(name, "plain", endpoint_id=endpoint_id)
    box.dispatcher.start()
    assert [await made_by(box, name) for name in ("d1", "k1", "d2")] == ["dev", "klein-4b", "dev"]
    assert order_of(box) == ["d1", "k1", "d2"]


async def test_a_switch_waits_for_what_is_encoded(box: Box, tmp_path: Path) -> None:
    """The runner goes only when the images that were drawn on it have left it."""
    gate = tmp_path / "gate"
    await box.submit("d1", f"encode-wait {gate}")
    box.dispatcher.start()
    with box.events.watch("d1") as changed:
        async with asyncio.timeout(WAIT_SECONDS):
            while not any("decoded" in line.message for line in box.events.read_log("d1")):
                changed.clear()
                await changed.wait()
    pid = box.runner.pid
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    await box.submit("d2", "plain")  # it may overtake, and shows that the worker has looked
    assert await made_by_waiting(box, gate, "d2") == pid
    assert await made_by(box, "k1") == "klein-4b"
    assert order_of(box) == ["d1", "d2", "k1"]
    assert [(await job_of(box, name)).attempts for name in ("d1", "d2", "k1")] == [1, 1, 1]


async def made_by_waiting(box: Box, gate: Path, request_id: str) -> int | None:
    """Let the encoding end when a request was begun; return the runner that both are with."""
    await box.wait(request_id, lambda job: job.status is not JobStatus.IN_QUEUE)
    pid = box.runner.pid
    gate.touch()
    await box.outcome(request_id)
    return pid


async def test_ready_while_it_switches(box: Box, folders: dict[Model, Path]) -> None:
    """A switch is part of serving; that it is loading is told, and a stop need not wait for it."""
    held = folders[Model.KLEIN_4B] / "held"
    held.touch()
    await box.submit("d1", "plain")
    box.dispatcher.start()
    await until(lambda: words_of(box) == {"loading", "loadable"})
    problems = [box.dispatcher.problem]
    await box.outcome("d1")
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    await until(lambda: box.dispatcher.model_states[Model.KLEIN_4B].word == "loading")
    problems.append(box.dispatcher.problem)
    assert problems == ["the runner is loading", None]
    await box.dispatcher.stop(10 * WAIT_SECONDS)
    job = await job_of(box, "k1")
    assert (job.status, job.attempts) == (JobStatus.IN_QUEUE, 0)
    assert box.runner.pid is None


async def test_missing_files_cost_the_loaded_model_nothing(
    box: Box, folders: dict[Model, Path]
) -> None:
    """What cannot be loaded is told by its folder: the runner stays, and its requests fail."""
    (folders[Model.KLEIN_4B] / "vae" / "config.json").unlink()
    await box.submit("d1", "plain")
    box.dispatcher.start()
    await box.outcome("d1")
    pid = box.runner.pid
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    outcome = await box.outcome("k1")
    assert (outcome.http_status, outcome.error_type) == (503, "runner_server_error")
    told = json.loads(outcome.body)["detail"]
    assert told == 'The model "klein-4b" cannot be loaded on this server now'
    assert box.runner.pid == pid
    state = box.dispatcher.model_states[Model.KLEIN_4B]
    assert (state.word, "vae/config.json: missing" in (state.reason or "")) == ("failed", True)
    assert box.dispatcher.problem is None
    await box.submit("d2", "plain")
    assert await made_by(box, "d2") == "dev"
    await box.submit("k2", "plain", endpoint_id=KLEIN)
    assert (await box.outcome("k2")).http_status == 503
    assert 'load_failures_total{model="klein-4b"} 3.0' in box.parts.metrics.render().decode()


async def test_a_folder_that_hangs_holds_nobody_up(
    box: Box, folders: dict[Model, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer is as good as none; what is loaded goes on."""
    monkeypatch.setattr(server.model_folders, "LOOK_SECONDS", 0.05)
    await box.submit("d1", "plain")
    box.dispatcher.start()
    await box.outcome("d1")
    index = folders[Model.KLEIN_4B] / "model_index.json"
    index.unlink()
    os.mkfifo(index)
    try:
        await box.submit("k1", "plain", endpoint_id=KLEIN)
        assert (await box.outcome("k1")).http_status == 503
        state = box.dispatcher.model_states[Model.KLEIN_4B]
        assert state.word == "failed"
        assert "cannot be read in 0.05 seconds" in (state.reason or "")
        await box.submit("d2", "plain")
        assert await made_by(box, "d2") == "dev"
    finally:
        index.write_text("{}")  # so that the look ends, and with it its thread


async def test_a_folder_that_cannot_be_read_is_like_none(
    box: Box, folders: dict[Model, Path]
) -> None:
    """Whatever the file system says of it."""
    await box.submit("d1", "plain")
    box.dispatcher.start()
    await box.outcome("d1")
    shutil.rmtree(folders[Model.KLEIN_4B])
    folders[Model.KLEIN_4B].symlink_to("n" * 256)
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    assert (await box.outcome("k1")).http_status == 503
    await box.submit("d2", "plain")
    assert await made_by(box, "d2") == "dev"


async def test_a_broken_model_keeps_nobody_else_up(box: Box, folders: dict[Model, Path]) -> None:
    """Three tries, then its requests are ended and the others are made; once mended it is back."""
    broken = folders[Model.KLEIN_4B] / "broken"
    broken.touch()
    for name, endpoint_id in (("k1", KLEIN), ("d1", DEV), ("k2", KLEIN)):
        await box.submit(name, "plain", endpoint_id=endpoint_id)
    box.dispatcher.start()
    assert await made_by(box, "d1") == "dev"
    for name in ("k1", "k2"):
        assert (await box.outcome(name)).http_status == 503
        assert (await job_of(box, name)).attempts == 0
    broken.unlink()
    box.clock.not_before(box.clock() + server.turns.GIVEN_UP_SECONDS)
    await box.submit("k3", "plain", endpoint_id=KLEIN)
    assert await made_by(box, "k3") == "klein-4b"
    assert box.dispatcher.model_states[Model.KLEIN_4B] == ModelState("loaded")


async def test_what_waits_is_kept_where_nothing_can_be_loaded(
    box: Box, folders: dict[Model, Path]
) -> None:
    """With every model broken it is the box that is: readiness says so, and nothing is lost."""
    for folder in folders.values():
        (folder / "broken").touch()
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    await box.submit("d1", "plain")
    box.dispatcher.start()
    await until(lambda: words_of(box) == {"failed"})
    now = box.clock()
    worker = box.dispatcher._workers[0]
    await until(lambda: all(worker.failures.has_given_up(model, now) for model in folders))
    assert "broken: there" in (box.dispatcher.problem or "")
    for name in ("k1", "d1"):
        assert (await job_of(box, name)).status is JobStatus.IN_QUEUE
    for folder in folders.values():
        (folder / "broken").unlink()
    box.clock.not_before(now + server.turns.GIVEN_UP_SECONDS)
    worker.wake()
    assert await made_by(box, "k1") == "klein-4b"
    assert await made_by(box, "d1") == "dev"


async def test_a_dead_runner_comes_back_with_what_is_first(box: Box) -> None:
    """A request that kills three runners is failed as ever, and both models go on."""
    await box.submit("poison", "die", endpoint_id=KLEIN)
    await box.submit("d1", "plain")
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    box.dispatcher.start()
    assert (await box.outcome("poison")).error_type == "runner_disconnected"
    assert (await job_of(box, "poison")).attempts == 3
    assert await made_by(box, "d1") == "dev"
    assert await made_by(box, "k1") == "klein-4b"


async def test_a_kill_during_a_switch_loses_nothing(box: Box, folders: dict[Model, Path]) -> None:
    """The load is tried again; the request that waits for it was not begun and is not charged."""
    held = folders[Model.KLEIN_4B] / "held"
    await box.submit("d1", "plain")
    box.dispatcher.start()
    await box.outcome("d1")
    held.touch()
    old = box.runner.pid
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    await until(lambda: box.runner.pid not in (None, old))
    assert box.runner.pid is not None
    os.kill(box.runner.pid, signal.SIGKILL)
    held.unlink()
    assert await made_by(box, "k1") == "klein-4b"
    job = await job_of(box, "k1")
    assert (job.attempts, job.runner_deaths) == (1, 0)


async def test_no_request_is_drawn_by_another_model(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was begun, and finds its runner replaced by one with another model, waits again."""
    read, gate = box.parts.inputs.read, asyncio.Event()

    async def read_late(self: InputPreparer, job: Job) -> Order:
        assert self is box.parts.inputs
        if job.request_id == "d1":
            await gate.wait()
        return await read(job)

    monkeypatch.setattr(InputPreparer, "read", read_late)
    await box.submit("d1", "plain")
    box.dispatcher.start()
    await until(lambda: box.store.backlog.in_progress)
    await box.submit("k1", "plain", endpoint_id=KLEIN)
    assert box.runner.pid is not None
    os.kill(box.runner.pid, signal.SIGKILL)
    await until(lambda: box.dispatcher.model_states[Model.KLEIN_4B].word == "loaded")
    gate.set()
    assert await made_by(box, "d1") == "dev"
    assert await made_by(box, "k1") == "klein-4b"
    assert (await job_of(box, "d1")).attempts == 1


async def test_two_runners_have_two_models(make_box: MakeBox) -> None:
    """With nothing to do each loads what the other has not; then nobody has to switch."""
    box = make_box(devices=("cpu", "cpu"))
    await box.store.open()
    box.dispatcher.start()
    await until(lambda: words_of(box) == {"loaded"})
    for number in range(4):
        await box.submit(f"d{number}", "plain")
        await box.submit(f"k{number}", "plain", endpoint_id=KLEIN)
    for number in range(4):
        assert await made_by(box, f"d{number}") == "dev"
        assert await made_by(box, f"k{number}") == "klein-4b"
    text = box.parts.metrics.render().decode()
    assert 'model_switches_total{model="dev"} 0.0' in text
    assert 'model_switches_total{model="klein-4b"} 0.0' in text


async def test_what_a_dying_runner_had_is_made_by_another(
    make_box: MakeBox, folders: dict[Model, Path], tmp_path: Path
) -> None:
    """At once, not when the first one has loaded its model again."""
    box = make_box(devices=("cpu=dev", "cpu=dev", "cpu=klein-4b"))
    await box.store.open()
    box.dispatcher.start()
    await until(lambda: all(worker.loaded for worker in box.dispatcher._workers))
    (folders[Model.DEV] / "held").touch()
    await box.submit("d1", f"once {tmp_path / 'flag'} die")
    assert await made_by(box, "d1") == "dev"


async def test_a_device_is_kept_for_its_model(make_box: MakeBox, tmp_path: Path) -> None:
    """What its neighbour is busy with holds nobody up, and is not helped with."""
    box = make_box(devices=("cpu=dev", "cpu=klein-4b"))
    await box.store.open()
    gate = tmp_path / "gate"
    for number in range(3):
        await box.submit(f"k{number}", f"hold {gate}", endpoint_id=KLEIN)
    box.dispatcher.start()
    await box.running("k0")
    for number in range(3):
        await box.submit(f"d{number}", "plain")
        assert await made_by(box, f"d{number}") == "dev"
    gate.touch()
    for number in range(3):
        assert await made_by(box, f"k{number}") == "klein-4b"


async def test_what_waits_for_a_model_that_is_gone_is_ended(
    box: Box, make_settings: Callable[..., Settings], folders: dict[Model, Path]
) -> None:
    """Taken from the configuration with requests in the queue: none waits for ever."""
    for needs in Need:
        await box.submit(f"needs {needs}", "plain", endpoint_id=KLEIN, needs=needs)
    await box.submit("d1", "plain")
    await box.store.close()
    settings = make_settings(model=folders[Model.DEV], pipeline_factory="fault_pipelines:by_folder")
    later = Box(settings)
    await later.store.open()
    later.dispatcher.start()
    try:
        for needs in Need:
            outcome = await later.outcome(f"needs {needs}")
            assert outcome.http_status == 404
            told = json.loads(outcome.body)["detail"]
            assert "this server does not have the model klein-4b, only dev." in told
        assert await made_by(later, "d1") == "dev"
    finally:
        await later.dispatcher.stop(0)
        await later.store.close()
