"""The door into the queue: what is refused, and what is written down of what is not."""

import math
import shutil
from collections import namedtuple
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.admission import Admission, Wishes, disk_problem
from server.catalogue import find_endpoint
from server.errors import RequestError
from server.jobs import Job, Priority
from server.keys import Caller
from server.settings import Settings
from server.store import Store
from tests.server.conftest import MakeSettings

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
