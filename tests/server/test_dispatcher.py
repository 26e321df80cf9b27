"""The dispatcher with a real runner process: every claimed job ends with one outcome."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import server.prefetch
from server.admission import Wishes
from server.attempts import Parts
from server.catalogue import find_endpoint
from server.clock import SteadyClock
from server.dispatcher import Dispatcher
from server.errors import UnknownRequestError
from server.events import Events
from server.files import FileStore
from server.gateway import make_runner
from server.jobs import IllegalTransitionError, Job, JobStatus, Need, Outcome
from server.metrics import Metrics
from server.runners.local import RunnerState
from server.settings import Settings
from server.store import Store
from tests.server.stubs import Web, make_preparer
from tests.server.test_inputs import make_png

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60


class Box:
    """A store and a dispatcher with its runner: the server without HTTP."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.data_dir)
        self.files = FileStore(settings.data_dir / "files")
        self.web = Web()
        self.events = Events()
        self.clock = SteadyClock()
        self.completed: list[Job] = []
        self.parts = Parts(
            settings=settings,
            store=self.store,
            files=self.files,
            inputs=make_preparer(settings, self.files, self.store, self.web),
            events=self.events,
            metrics=Metrics(self.clock, self.store.backlog),
            clock=self.clock,
            on_completed=self.completed.append,
        )
        self.runners = [make_runner(settings, device) for device in settings.devices]
        self.runner = self.runners[0]
        self.dispatcher = Dispatcher(self.parts, self.runners)

    async def submit(
        self,
        request_id: str,
        prompt: str,
        wishes: Wishes | None = None,
        endpoint_id: str | None = None,
        needs: Need | None = None,
        **fields: Any,
    ) -> None:
        """Put a request into the queue and wake the dispatcher."""
        body = {"prompt": prompt, "image_size": "square", "seed": 1, **fields}
        wishes = wishes or Wishes()
        now = self.clock()
        urls = fields.get("image_urls", ())
        endpoint_id = endpoint_id or ("fal-ai/flux-2/flash/edit" if urls else "fal-ai/flux-2")
        job = Job(
            request_id=request_id,
            endpoint_id=endpoint_id,
            model=find_endpoint(endpoint_id).model,
            owner="local",
            origin="http://box",
            input=json.dumps(body),
            created_at=now,
            priority=wishes.priority,
            needs=needs or (Need.FETCHING if urls else Need.NOTHING),
            start_by=now + wishes.start_seconds if wishes.start_seconds else None,
            no_retry=wishes.no_retry,
            keep_payload=wishes.keep_payload,
            file_seconds=wishes.file_seconds,
        )
        self.dispatcher.on_accepted(await self.store.insert(job))

    async def wait(self, request_id: str, seen: Callable[[Job], bool]) -> Job:
        """Wait until the job looks as `seen` wants it."""
        async with asyncio.timeout(WAIT_SECONDS):
            with self.events.watch(request_id) as changed:
                while True:
                    changed.clear()
                    job = await self.store.get(request_id)
                    assert job is not None
                    if seen(job):
                        return job
                    await changed.wait()

    async def outcome(self, request_id: str) -> Outcome:
        """Wait for the job's outcome."""
        job = await self.wait(request_id, lambda job: job.outcome is not None)
        assert job.outcome is not None
        return job.outcome

    async def running(self, request_id: str) -> None:
        """Wait until the job's pipeline takes steps."""
        async with asyncio.timeout(WAIT_SECONDS):
            with self.events.watch(request_id) as changed:
                while not any("step" in line.message for line in self.events.read_log(request_id)):
                    changed.clear()
                    await changed.wait()


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Box]:
    """Return a working box on the instant fault pipeline."""
    box = Box(settings)
    await box.store.open()
    box.dispatcher.start()
    yield box
    await box.dispatcher.stop(0)
    await box.store.close()


async def test_a_job_becomes_files_and_an_answer(box: Box) -> None:
    """Images are on disk before the row says so, and the answer points at them."""
    await box.submit("one", "plain", num_images=2)
    outcome = await box.outcome("one")
    assert outcome.http_status == 200
    answer = json.loads(outcome.body)
    assert {file.name for file in outcome.files} == {
        image["file_name"] for image in answer["images"]
    }
    for image in answer["images"]:
        path = box.files.find(image["file_name"])
        assert path is not None
        assert path.stat().st_size == image["file_size"]
        assert image["url"] == f"http://box/files/{image['file_name']}"
    messages = [line["message"] for line in json.loads(outcome.logs)]
    assert messages[0] == "Started on a fault pipeline."
    assert messages[-1] == "Image 2 of 2: decoded."
    assert box.events.read_log("one") == []


@pytest.mark.parametrize(
    ("prompt", "status", "body"),
    [
        (
            "oom",
            503,
            {"detail": "CUDA error: out of memory", "error_type": "runner_server_error"},
        ),
        (
            "error",
            500,
            {"detail": "Internal Server Error", "error_type": "runner_server_error"},
        ),
    ],
)
async def test_a_failure_is_the_job_s_alone(
    box: Box, prompt: str, status: int, body: dict[str, str]
) -> None:
    """A failed request is told without our internals, and the same runner makes the next image."""
    await box.submit("bad", prompt)
    await box.submit("good", "plain")
    bad = await box.outcome("bad")
    pid = box.runner.pid
    assert (bad.http_status, json.loads(bad.body)) == (status, body)
    assert (await box.outcome("good")).http_status == 200
    assert box.runner.pid == pid


async def test_bad_input_never_reaches_the_runner(box: Box) -> None:
    """Validation is the job's own: the outcome is fal's 422."""
    await box.submit("bad", "plain", num_images=9)
    outcome = await box.outcome("bad")
    assert outcome.http_status == 422
    (item,) = json.loads(outcome.body)["detail"]
    assert (item["type"], item["loc"]) == ("less_than_equal", ["body", "num_images"])
    assert outcome.error_type is None


@pytest.mark.parametrize("prompt", ["die", "lost"])
async def test_a_job_that_kills_its_runner_is_failed_at_the_third_death(
    box: Box, prompt: str
) -> None:
    """A poison job gets three runners and no fourth, and the job behind it is made."""
    await box.submit("poison", prompt)
    await box.submit("good", "plain")
    outcome = await box.outcome("poison")
    assert outcome.http_status == 503
    assert outcome.error_type == "runner_disconnected"
    job = await box.store.get("poison")
    assert job is not None
    assert job.attempts == 3
    assert (await box.outcome("good")).http_status == 200


async def test_a_job_survives_the_death_of_its_runner(box: Box, tmp_path: Path) -> None:
    """Killed in mid-step, the runner is replaced and the job made again, once."""
    gate = tmp_path / "gate"
    await box.submit("one", f"hold {gate}")
    await box.running("one")
    assert box.runner.pid is not None
    os.kill(box.runner.pid, signal.SIGKILL)
    await box.wait("one", lambda job: job.runner_deaths == 1)
    gate.touch()
    assert (await box.outcome("one")).http_status == 200
    job = await box.store.get("one")
    assert job is not None
    assert (job.attempts, job.runner_deaths) == (2, 1)


async def test_an_idle_runner_that_dies_is_replaced(box: Box) -> None:
    """The next request finds a new runner, and costs no attempt."""
    await box.submit("one", "plain")
    await box.outcome("one")
    pid = box.runner.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await box.submit("two", "plain")
    assert (await box.outcome("two")).http_status == 200
    assert box.runner.pid not in (pid, None)


async def test_cancel_in_the_queue_and_while_running(box: Box) -> None:
    """A queued job leaves at once, a running one at its next step, a finished one not at all."""
    await box.submit("running", "hold")
    await box.submit("queued", "plain")
    await box.running("running")
    queued = await box.dispatcher.cancel("queued")
    assert queued.status is JobStatus.COMPLETED
    asked = await box.dispatcher.cancel("running")
    assert asked.status is JobStatus.IN_PROGRESS
    for request_id in ("queued", "running"):
        outcome = await box.outcome(request_id)
        assert outcome.http_status == 499
        assert outcome.error_type == "client_cancelled"
        with pytest.raises(IllegalTransitionError):
            await box.dispatcher.cancel(request_id)
    with pytest.raises(UnknownRequestError):
        await box.dispatcher.cancel("nobody")


async def test_a_cancelled_job_is_not_tried_again(box: Box) -> None:
    """When the runner dies while a cancel is on its way, the cancel counts."""
    await box.submit("one", "hold")
    await box.running("one")
    assert box.runner.pid is not None
    os.kill(box.runner.pid, signal.SIGSTOP)
    await box.dispatcher.cancel("one")
    os.kill(box.runner.pid, signal.SIGKILL)
    outcome = await box.outcome("one")
    assert (outcome.http_status, outcome.error_type) == (499, "client_cancelled")


async def test_stopping_puts_the_running_job_back(box: Box) -> None:
    """A stop that does not wait requeues the job without a charge and ends the runner."""
    await box.submit("one", "hold")
    await box.running("one")
    before = box.dispatcher.problem
    pid = box.runner.pid
    assert pid is not None
    await box.dispatcher.stop(0)
    job = await box.store.get("one")
    assert job is not None
    assert (job.status, job.attempts) == (JobStatus.IN_QUEUE, 0)
    assert box.runner.state is RunnerState.STOPPED
    assert (before, box.dispatcher.problem) == (None, "draining: the server is stopping")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_stopping_waits_for_the_running_job(box: Box, tmp_path: Path) -> None:
    """Within the drain time the running job is finished, and nothing more is claimed."""
    gate = tmp_path / "gate"
    await box.submit("one", f"hold {gate}")
    await box.submit("two", "plain")
    await box.running("one")
    stopping = asyncio.create_task(box.dispatcher.stop(WAIT_SECONDS))
    gate.touch()
    await stopping
    assert (await box.outcome("one")).http_status == 200
    job = await box.store.get("two")
    assert job is not None
    assert job.status is JobStatus.IN_QUEUE


def slow_image(box: Box) -> str:
    """Return the URL of an image that comes when its event in `box.web.slow` is set."""
    url = "http://images/slow.png"
    box.web.files[url] = make_png()
    box.web.slow[url] = asyncio.Event()
    return url


def is_spool_empty(box: Box) -> bool:
    """Say whether nothing is left of any reference image."""
    return not list((box.settings.data_dir / "spool").glob("*"))


async def test_a_slow_host_holds_nobody_up(box: Box) -> None:
    """What came later is made meanwhile, and the image is made when it has come at last."""
    url = slow_image(box)
    await box.submit("slow", "plain", image_urls=[url])
    await box.web.until(lambda: box.web.under_way)
    await box.submit("later", "plain")
    assert (await box.outcome("later")).http_status == 200
    assert box.web.under_way == {url}
    box.web.slow[url].set()
    assert (await box.outcome("slow")).http_status == 200


async def test_images_are_fetched_and_refused_while_the_runner_works(box: Box) -> None:
    """A request whose image cannot be had hears it at once, and costs no attempt."""
    await box.submit("running", "hold")
    await box.running("running")
    await box.submit("bad", "plain", image_urls=["http://nowhere/a.png"])
    outcome = await box.outcome("bad")
    assert outcome.http_status == 422
    assert json.loads(outcome.body)["detail"][0]["loc"] == ["body", "image_urls", 0]
    job = await box.store.get("bad")
    assert job is not None
    assert (job.attempts, job.started_at) == (0, None)
    assert [done.request_id for done in box.completed] == ["bad"]
    assert (await box.store.get("running")) is not None


@pytest.mark.parametrize(("sync_mode", "field"), [(True, "sync_"), (False, "")])
async def test_a_refusal_is_kept_as_long_as_its_result(
    box: Box, sync_mode: bool, field: str
) -> None:
    """With `sync_mode` not even the mistake stays for long."""
    urls = ["http://nowhere/a.png"]
    await box.submit("bad", "plain", image_urls=urls, sync_mode=sync_mode)
    outcome = await box.outcome("bad")
    assert outcome.keep_seconds == pytest.approx(getattr(box.settings, f"{field}result_seconds"))


async def test_a_runner_s_death_costs_no_second_fetch(box: Box, tmp_path: Path) -> None:
    """The next attempt finds the images where they are; afterwards they are gone."""
    url = slow_image(box)
    box.web.slow[url].set()
    await box.submit("one", f"once {tmp_path / 'flag'} die", image_urls=[url])
    assert (await box.outcome("one")).http_status == 200
    job = await box.store.get("one")
    assert job is not None
    assert (job.attempts, job.runner_deaths) == (2, 1)
    assert box.web.asked == [url]
    await box.dispatcher.stop(WAIT_SECONDS)
    assert is_spool_empty(box)


@pytest.mark.parametrize(
    ("seconds", "status"), [pytest.param(None, 499, id="cancel"), pytest.param(0.2, 504, id="late")]
)
async def test_who_leaves_is_not_fetched_for(box: Box, seconds: float | None, status: int) -> None:
    """A cancel, and the end of the time to start, end the fetch with the request."""
    url = slow_image(box)
    await box.submit("one", "plain", Wishes(start_seconds=seconds), image_urls=[url])
    await box.web.until(lambda: box.web.under_way)
    if seconds is None:
        await box.dispatcher.cancel("one")
    assert (await box.outcome("one")).http_status == status
    await box.web.until(lambda: not box.web.under_way)
    await box.dispatcher.stop(WAIT_SECONDS)
    assert is_spool_empty(box)


async def test_stopping_ends_fetches(box: Box) -> None:
    """The request waits on as it was, without a charge, and nothing of its images is left."""
    url = slow_image(box)
    await box.submit("one", "plain", image_urls=[url])
    await box.web.until(lambda: box.web.under_way)
    await box.dispatcher.stop(WAIT_SECONDS)
    assert box.web.under_way == set()
    assert is_spool_empty(box)
    job = await box.store.get("one")
    assert job is not None
    assert (job.status, job.attempts) == (JobStatus.IN_QUEUE, 0)


async def test_no_room_for_images_is_told(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk takes no image the server is not ready, and the reason is the storage's."""
    monkeypatch.setattr(server.prefetch, "STORAGE_RETRY_SECONDS", 0.001)
    url = slow_image(box)
    box.web.slow[url].set()
    box.web.errors[url] = OSError(28, "No space left on device")
    await box.submit("one", "plain", image_urls=[url])
    await box.web.until(lambda: len(box.web.asked) > 1)
    problems = [box.dispatcher.problem]
    del box.web.errors[url]
    assert (await box.outcome("one")).http_status == 200
    problems.append(box.dispatcher.problem)
    assert problems == ["storage: [Errno 28] No space left on device", None]


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("fault_pipelines:missing", "/models/flux2/vae/config.json: missing"),
        ("fault_pipelines:stillborn", "the runner ended with code 9"),
        ("fault_pipelines:no_such_name", "no_such_name"),
    ],
)
async def test_a_model_that_cannot_load_is_told(
    make_settings: Callable[..., Settings], factory: str, reason: str
) -> None:
    """The reason is there for the readiness probe, and the queue is kept."""
    box = Box(make_settings(pipeline_factory=factory))
    await box.store.open()
    await box.submit("one", "plain")
    with pytest.raises(Exception, match=reason):
        await box.runner.start()
    assert reason in (box.dispatcher.problem or "")
    assert box.runner.pid is None
    job = await box.store.get("one")
    assert job is not None
    assert job.status is JobStatus.IN_QUEUE
    await box.store.close()
