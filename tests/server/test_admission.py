"""The door into the queue: what is refused, and what is written down of what is not."""

import asyncio
import math
import shutil
from collections import namedtuple
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.types import Model
from server.admission import Admission, Wishes, disk_problem
from server.catalogue import find_endpoint
from server.errors import RequestError
from server.jobs import Job, Priority
from server.keys import Caller, KeyLimits
from server.settings import Settings
from server.store import Store
from tests.server.conftest import MakeSettings
from tests.server.test_limiter import Hand

pytestmark = pytest.mark.anyio

NOW = 1000.0
Usage = namedtuple("Usage", ["total", "used", "free"])  # noqa: PYI024  (as shutil's own)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Return an open store on the settings' folder."""
    store = Store(settings.data_dir)
    await store.open()
    yield store
    await store.close()


async def accept(
    settings: Settings, store: Store, wishes: Wishes | None = None, body: Any = None
) -> tuple[Job, list[Job]]:
    """Accept a request; return its job, and who was told of it."""
    told: list[Job] = []
    admission = Admission(settings, store, lambda: NOW, told.append)
    endpoint = find_endpoint("fal-ai/flux-2")
    job = await admission.accept(Caller(), endpoint, body or {}, "http://box", wishes or Wishes())
    return job, told


async def test_every_wish_is_on_record(settings: Settings, store: Store) -> None:
    """The stored job says what the caller asked for, with times on the server's clock."""
    wishes = Wishes(
        priority=Priority.LOW,
        start_seconds=30.0,
        no_retry=True,
        keep_payload=False,
        file_seconds=math.inf,
        webhook_url="http://receiver/",
    )
    body = {"prompt": "lone \ud800 surrogate"}
    job, told = await accept(settings, store, wishes, body)
    assert told == [job]
    stored = await store.get(job.request_id)
    assert stored == job
    assert (job.created_at, job.start_by) == (NOW, NOW + 30)
    assert (job.priority, job.no_retry, job.keep_payload) == (Priority.LOW, True, False)
    assert (job.file_seconds, job.webhook_url) == (math.inf, "http://receiver/")
    assert await store.read_input(job.request_id) == '{"prompt": "lone \\ud800 surrogate"}'


async def test_a_full_queue_refuses(make_settings: MakeSettings, store: Store) -> None:
    """Past the operator's limit or the caller's own it is 429, and nothing is stored."""
    settings = make_settings(queue_limit=2)
    for _ in range(2):
        await accept(settings, store)
    with pytest.raises(RequestError) as refused:
        await accept(settings, store)
    assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "10")
    with pytest.raises(RequestError) as refused:
        await accept(make_settings(), store, Wishes(queue_limit=1))
    assert refused.value.body["detail"] == "The queue is longer than 1"
    assert len(store.backlog) == 2
    await accept(make_settings(), store, Wishes(queue_limit=2))
    assert len(store.backlog) == 3


async def test_a_full_disk_refuses(
    make_settings: MakeSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the reserve it is 503 and ready says how much is missing; at the reserve it is not."""
    settings = make_settings(disk_reserve_bytes=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(9999, 9000, 999))
    with pytest.raises(RequestError) as refused:
        await accept(settings, store)
    assert (refused.value.status, refused.value.headers["retry-after"]) == (503, "10")
    assert disk_problem(settings) == "disk: 999 bytes free, 1000 wanted"
    assert len(store.backlog) == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(9999, 8999, 1000))
    await accept(settings, store)
    assert disk_problem(settings) is None


class Keyed:
    """An admission that several keys share, on a clock that the test moves."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.clock = Hand()
        self._admission = Admission(settings, store, self.clock, lambda _: None)

    async def send(self, caller: Caller) -> RequestError | None:
        """Send a request; return the refusal, None when it was accepted."""
        endpoint = find_endpoint("fal-ai/flux-2")
        try:
            await self._admission.accept(caller, endpoint, {}, "http://box", Wishes())
        except RequestError as error:
            return error
        return None


async def test_a_key_has_its_own_place_in_the_queue(settings: Settings, store: Store) -> None:
    """At its limit it hears 429 while others go on; a claim or a restart counts right."""
    keyed = Keyed(settings, store)
    small = Caller(owner="small", limits=KeyLimits(queued_jobs=2))
    assert [await keyed.send(small) for _ in range(2)] == [None, None]
    refusal = await keyed.send(small)
    assert refusal is not None
    assert (refusal.status, refusal.error_type) == (429, "queue_full")
    assert refusal.headers["retry-after"] == "10"
    assert refusal.headers["x-fal-needs-retry"] == "1"
    assert await keyed.send(Caller()) is None
    assert await keyed.send(Caller(owner="other", limits=KeyLimits(queued_jobs=1))) is None
    job = await store.claim(NOW)
    assert job is not None
    assert job.owner == "small"
    assert await keyed.send(small) is None
    assert await keyed.send(small) is not None
    again = Store(settings.data_dir)
    await store.close()
    await again.open()
    assert again.backlog.count_of("small") == 2
    await again.close()


async def test_a_rush_at_once_does_not_pass_the_limit(settings: Settings, store: Store) -> None:
    """Exactly as many are accepted as have a place, though all ask before the first is stored."""
    keyed = Keyed(settings, store)
    caller = Caller(owner="rush", limits=KeyLimits(queued_jobs=30))
    answers = await asyncio.gather(*(keyed.send(caller) for _ in range(100)))
    assert answers.count(None) == 30
    assert store.backlog.count_of("rush") == 30


async def test_the_server_s_limit_is_exact_too(make_settings: MakeSettings, store: Store) -> None:
    """The same rush from a hundred keys fills the queue to its limit and no further."""
    keyed = Keyed(make_settings(queue_limit=40), store)
    owners = [Caller(owner=f"key {number}") for number in range(100)]
    answers = await asyncio.gather(*(keyed.send(caller) for caller in owners))
    assert answers.count(None) == len(store.backlog) == 40


async def test_requests_a_minute(settings: Settings, store: Store) -> None:
    """Past its rate a key is told when it may again; other keys are not held up."""
    keyed = Keyed(settings, store)
    caller = Caller(owner="fast", limits=KeyLimits(requests_per_minute=4))
    assert [await keyed.send(caller) for _ in range(4)] == [None] * 4
    refusal = await keyed.send(caller)
    assert refusal is not None
    assert (refusal.status, refusal.error_type) == (429, "concurrent_requests_limit")
    assert refusal.headers["retry-after"] == "15"
    assert await keyed.send(Caller(owner="calm", limits=KeyLimits(requests_per_minute=4))) is None
    assert await keyed.send(Caller()) is None
    keyed.clock.now += 15.001
    assert await keyed.send(caller) is None
    assert await keyed.send(caller) is not None


async def test_a_model_that_is_not_here_is_told_at_the_door(
    make_settings: MakeSettings, store: Store, tmp_path: Path
) -> None:
    """Nothing waits for what will never come; where the model is, the job is its own."""
    klein = find_endpoint("fal-ai/flux-2/klein/4b")
    admission = Admission(make_settings(), store, lambda: NOW, lambda _: None)
    with pytest.raises(RequestError, match="does not have the model klein-4b, only dev") as caught:
        admission.find_endpoint(klein.id)
    assert caught.value.status == 404
    with pytest.raises(RequestError, match="klein-4b") as caught:
        await admission.accept(Caller(), klein, {}, "http://box", Wishes())
    assert caught.value.status == 404
    assert len(store.backlog) == 0
    settings = make_settings(model=None, models={Model.KLEIN_4B: tmp_path})
    admission = Admission(settings, store, lambda: NOW, lambda _: None)
    job = await admission.accept(
        Caller(), admission.find_endpoint(klein.id), {}, "http://box", Wishes()
    )
    assert job.model is Model.KLEIN_4B
    with pytest.raises(RequestError, match="does not have the model dev, only klein-4b"):
        admission.find_endpoint("fal-ai/flux-2")
