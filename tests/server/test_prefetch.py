"""What is prepared ahead, in which order, and that nothing of it is left behind."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import server.prefetch
from pipelines.types import Model
from server import jobs
from server.errors import FalError
from server.files import FileStore
from server.jobs import Job, Need, Outcome, Priority
from server.prefetch import Prefetcher
from server.settings import Settings
from server.store import Store, StoreUnavailableError
from tests.server.stubs import Web, make_preparer
from tests.server.test_inputs import make_png, to_data_uri

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30
DECODING, FETCHING = 2, 3
OUTCOME = Outcome(http_status=499, body="{}", keep_seconds=60)


class Head:
    """The head of a real queue, prepared with a web of the test's; nobody works on it."""

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings.data_dir)
        self.web = Web()
        files = FileStore(settings.data_dir / "files")
        self.inputs = make_preparer(settings, files, self.store, self.web)
        self.spool = settings.data_dir / "spool"
        self.failed: dict[str, FalError | None] = {}
        self.changed = asyncio.Event()
        places = {Need.DECODING: DECODING, Need.FETCHING: FETCHING}
        self.prefetcher = Prefetcher(
            *(self.store, self.inputs, places, self.changed.set, self.on_failed),
            models=(Model.DEV, Model.KLEIN_4B),
        )

    async def on_failed(self, job: Job, error: FalError | None) -> None:
        """End the job, as the dispatcher does."""
        self.failed[job.request_id] = error
        await self.end(job.request_id)
        self.changed.set()

    async def submit(
        self,
        request_id: str,
        *urls: str,
        owner: str = "local",
        priority: Priority = Priority.NORMAL,
        model: Model = Model.DEV,
    ) -> None:
        """Put a request with these images into the queue; without any it needs none."""
        needs = Need.FETCHING if any("://" in url for url in urls) else Need.DECODING
        kind = "flux-2/flash/edit" if urls else "flux-2"
        kind = kind if model is Model.DEV else "flux-2/klein/4b/edit"
        await self.store.insert(
            Job(
                request_id=request_id,
                endpoint_id=f"fal-ai/{kind}",
                model=model,
                owner=owner,
                origin="http://box",
                input=json.dumps({"prompt": "x", "image_urls": urls}),
                created_at=1.0,
                priority=priority,
                needs=needs if urls else Need.NOTHING,
            )
        )
        self.prefetcher.wake()

    async def submit_slow(self, request_id: str, **options: str) -> str:
        """Put a request into the queue whose image does not come before `answer`."""
        url = f"http://{request_id}"
        self.web.files[url] = make_png()
        self.web.slow[url] = asyncio.Event()
        await self.submit(request_id, url, **options)  # type: ignore[arg-type]
        return url

    def answer(self, request_id: str) -> None:
        """Let the image of a slow request come."""
        self.web.slow[f"http://{request_id}"].set()

    async def end(self, request_id: str) -> None:
        """Take a request out of the queue."""
        await self.store.change(request_id, lambda job: jobs.end_in_queue(job, OUTCOME, 2.0))
        self.prefetcher.drop(request_id)

    async def claim(self) -> Job | None:
        """Claim as a worker does."""
        return await self.store.claim(2.0, self.prefetcher.ready())

    async def until(self, seen: Callable[[], object]) -> None:
        """Wait until a preparation that ends makes `seen` true."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not seen():
                self.changed.clear()
                await self.changed.wait()

    async def until_ready(self, *request_ids: str) -> None:
        """Wait until exactly these are ready."""
        await self.until(lambda: sorted(self.prefetcher.ready()) == sorted(request_ids))

    def spooled(self) -> list[Path]:
        """Return everything in the spool."""
        return sorted(self.spool.rglob("*")) if self.spool.exists() else []


@pytest.fixture
async def head(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Head]:
    """Return an empty queue whose head is prepared as soon as there is one."""
    monkeypatch.setattr(server.prefetch, "STORAGE_RETRY_SECONDS", 0.001)
    head = Head(settings)
    await head.store.open()
    head.prefetcher.start()
    yield head
    await head.prefetcher.stop()
    await head.prefetcher.clear()
    assert head.spooled() == []
    assert head.web.under_way == set()
    await head.store.close()


IMAGE = to_data_uri(make_png())


async def test_a_few_are_prepared_ahead_and_in_order(head: Head) -> None:
    """As many as there are places; another one begins when one of them goes to a runner."""
    for name in "abcd":
        await head.submit(name, IMAGE)
    await head.until_ready("a", "b")
    first = await head.claim()
    assert first is not None
    assert first.request_id == "a"
    (path,) = (await head.prefetcher.take(first)).references
    assert path.exists()
    await head.until_ready("b", "c")


async def test_nobody_waits_for_a_slow_host_but_its_own_kind(head: Head) -> None:
    """Behind any number of dead hosts come requests without images and with images of ours."""
    for number in range(3 * FETCHING):
        await head.submit_slow(f"slow{number}")
    await head.submit("plain")
    await head.submit("data", IMAGE)
    await head.until_ready("data")
    claimed = [await head.claim() for _ in range(3)]
    assert [job and job.request_id for job in claimed] == ["plain", "data", None]
    assert len(head.web.asked) == FETCHING
    head.answer("slow0")
    await head.until_ready("data", "slow0")
    late = await head.claim()
    assert late is not None
    assert late.request_id == "slow0"


async def test_a_model_that_waits_leaves_the_others_their_places(head: Head) -> None:
    """However many requests are ready for one that nobody has loaded, the other's are prepared."""
    for number in range(3 * DECODING):
        await head.submit(f"klein{number}", IMAGE, model=Model.KLEIN_4B)
    await head.until_ready(*(f"klein{number}" for number in range(DECODING)))
    await head.submit("dev", IMAGE)
    await head.until_ready("dev", *(f"klein{number}" for number in range(DECODING)))
    job = await head.store.claim(2.0, head.prefetcher.ready(), (Model.DEV,))
    assert job is not None
    assert job.request_id == "dev"


async def test_what_is_ready_goes_in_the_order_of_the_queue(head: Head) -> None:
    """Urgent before old, old before new, with images or without."""
    await head.submit("low", IMAGE, priority=Priority.LOW)
    await head.submit("image", IMAGE)
    await head.submit("plain")
    await head.until_ready("low", "image")
    claimed = [await head.claim() for _ in range(3)]
    assert [job and job.request_id for job in claimed] == ["image", "plain", "low"]


async def test_owners_take_turns(head: Head) -> None:
    """One key's many slow hosts leave places to fetch for another key that comes later."""
    for number in range(FETCHING):
        await head.submit_slow(f"a{number}", owner="anna")
    await head.submit_slow("late", owner="anna")
    await head.web.until(lambda: len(head.web.asked) == FETCHING)
    await head.submit_slow("b0", owner="bert")
    head.answer("a0")
    await head.until_ready("a0")
    job = await head.claim()
    assert job is not None
    await head.prefetcher.take(job)
    await head.web.until(lambda: len(head.web.asked) == FETCHING + 1)
    assert head.web.asked[-1] == "http://b0"


async def test_a_refused_image_ends_its_job_and_frees_the_place(head: Head) -> None:
    """It takes neither a claim nor a runner, and the next one begins."""
    for number in range(FETCHING + 1):
        await head.submit(f"bad{number}", f"http://nowhere/{number}")
    await head.until(lambda: len(head.failed) == FETCHING + 1)
    error = head.failed["bad0"]
    assert error is not None
    assert error.status == 422
    assert await head.claim() is None
    assert len(head.store.backlog) == 0


async def test_a_fault_of_ours_ends_one_job(head: Head) -> None:
    """It is told as such, once, and does not come back for ever."""
    head.web.errors["http://odd"] = ZeroDivisionError()
    await head.submit("odd", "http://odd")
    await head.until(lambda: head.failed == {"odd": None})
    await head.submit("good", IMAGE)
    await head.until_ready("good")


async def test_a_job_that_leaves_the_queue_is_given_up(head: Head) -> None:
    """Cancelled or too late, on its way or ready: its fetch ends, its files go, others begin."""
    for number in range(FETCHING + 1):
        await head.submit_slow(f"slow{number}")
    await head.submit("ready", IMAGE)
    await head.web.until(lambda: len(head.web.asked) == FETCHING)
    await head.until_ready("ready")
    await head.end("slow1")
    await head.end("ready")
    await head.web.until(lambda: len(head.web.asked) == FETCHING + 1)
    await head.web.until(lambda: "http://slow1" not in head.web.under_way)
    assert head.prefetcher.ready() == []


async def test_a_job_that_ends_while_the_store_is_asked_is_not_begun(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is older than its end; nobody would ever give it up."""
    ask, asked = head.store.next_in_need, asyncio.Event()

    async def end_meanwhile(model: Model, needs: Need, limit: int) -> list[Job]:
        found = await ask(model, needs, limit)
        for job in found:
            if job.request_id == "gone":
                await head.end("gone")
                asked.set()
        return found

    monkeypatch.setattr(head.store, "next_in_need", end_meanwhile)
    await head.submit_slow("gone")
    await asked.wait()
    await head.submit("good", IMAGE)
    await head.until_ready("good")
    assert head.web.asked == []


async def test_a_lost_attempt_keeps_its_images(head: Head) -> None:
    """Given back, a job is ready at once; nothing is fetched twice."""
    head.web.files["http://a"] = make_png()
    await head.submit("a", "http://a")
    await head.until_ready("a")
    job = await head.claim()
    assert job is not None
    before = await head.prefetcher.take(job)
    assert head.prefetcher.ready() == []
    await head.store.change(
        "a", lambda job: jobs.requeue(job, runner_died=True, charge_attempt=True)
    )
    head.prefetcher.give_back("a")
    again = await head.claim()
    assert again is not None
    assert await head.prefetcher.take(again) == before
    assert head.web.asked == ["http://a"]


async def test_images_that_are_gone_are_prepared_again(head: Head) -> None:
    """Whoever cleans the spool by hand costs a fetch and no request."""
    head.web.files["http://a"] = make_png()
    await head.submit("a", "http://a")
    await head.until_ready("a")
    job = await head.claim()
    assert job is not None
    shutil.rmtree(head.spool)
    (path,) = (await head.prefetcher.take(job)).references
    assert path.exists()
    assert head.web.asked == ["http://a"] * 2


async def test_a_stop_leaves_only_what_runs(head: Head) -> None:
    """Fetches end, ready images go; those with a runner stay until that has stopped."""
    await head.submit("running", IMAGE)
    await head.until_ready("running")
    job = await head.claim()
    assert job is not None
    (path,) = (await head.prefetcher.take(job)).references
    await head.submit_slow("slow")
    await head.submit("ready", IMAGE)
    await head.until_ready("ready")
    await head.web.until(lambda: head.web.under_way)
    await head.prefetcher.stop()
    assert head.web.under_way == set()
    assert head.spooled() == [path.parent, path]
    await head.prefetcher.clear()
    assert head.spooled() == []
    for request_id in ("slow", "ready"):
        left = await head.store.get(request_id)
        assert left is not None
        assert (left.outcome, left.attempts) == (None, 0)


async def test_a_full_disk_is_told_and_waited_for(head: Head) -> None:
    """No accepted request fails for want of room, and nothing is left in it meanwhile."""
    head.web.files["http://a"] = make_png()
    head.web.errors["http://a"] = OSError(28, "No space left on device")
    await head.submit("a", "http://a")
    await head.web.until(lambda: len(head.web.asked) > 2)
    problems = [head.prefetcher.problem]
    del head.web.errors["http://a"]
    await head.until_ready("a")
    await head.prefetcher.stop()
    problems.append(head.prefetcher.problem)
    assert problems == ["storage: [Errno 28] No space left on device", None]
    assert head.failed == {}


async def test_a_store_that_refuses_is_asked_again(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A locked database costs time and no job."""
    ask, refusals = head.store.next_in_need, 3

    async def refuse_thrice(model: Model, needs: Need, limit: int) -> list[Job]:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise StoreUnavailableError("database is locked")
        return await ask(model, needs, limit)

    monkeypatch.setattr(head.store, "next_in_need", refuse_thrice)
    await head.submit("a", IMAGE)
    await head.until_ready("a")


async def test_a_held_queue_asks_nobody(head: Head) -> None:
    """What the operator holds stands still, and goes on at his word."""
    head.prefetcher.held = True
    await head.submit("a", IMAGE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(head.changed.wait(), 0.05)
    head.prefetcher.held = False
    head.prefetcher.wake()
    await head.until_ready("a")


async def test_each_input_is_read_once(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the queue is looked at: an input may have tens of megabytes."""
    read, reads = head.store.read_input, []

    async def count(request_id: str) -> str:
        reads.append(request_id)
        return await read(request_id)

    monkeypatch.setattr(head.store, "read_input", count)
    for number in range(DECODING + 3):
        await head.submit(f"{number}", IMAGE)
        await head.submit_slow(f"slow{number}")
    await head.until_ready("0", "1")
    await head.web.until(lambda: len(head.web.asked) == FETCHING)
    assert sorted(reads) == ["0", "1", "slow0", "slow1", "slow2"]
