"""The outbox: rows made with the result, found fairly and cheaply, ended once."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server import jobs
from server.jobs import Job, JobStatus, Outcome
from server.store import Store
from server.store.outbox import Due, Letter, Outbox

pytestmark = pytest.mark.anyio

OUTCOME = Outcome(http_status=200, body='{"seed": 1}', keep_seconds=60)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Return an open store in a fresh folder."""
    store = Store(tmp_path)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def outbox(store: Store) -> Outbox:
    """Return the store's outbox."""
    return Outbox(store)


async def finish(store: Store, request_id: str, url: str | None, now: float) -> None:
    """Accept a job with this webhook and complete it."""
    await store.insert(
        Job(
            request_id=request_id,
            endpoint_id="fal-ai/flux-2",
            owner="local",
            origin="http://box",
            input="{}",
            created_at=now,
            webhook_url=url,
        )
    )
    await store.change(request_id, lambda job: jobs.complete(job, OUTCOME, now))


async def row_of(store: Store, request_id: str) -> dict[str, object]:
    """Return the whole row of a webhook."""

    def read(connection: sqlite3.Connection) -> dict[str, object]:
        query = "SELECT * FROM webhooks WHERE request_id = ?"
        return dict(connection.execute(query, [request_id]).fetchone())

    return await store.read(read)


async def test_a_result_and_its_webhook_come_together(store: Store, outbox: Outbox) -> None:
    """The row is there as soon as the result is, due at once; without a URL there is none."""
    await finish(store, "a", "http://hook.example/a", 5.0)
    await finish(store, "b", None, 6.0)
    assert await outbox.counts() == {"pending": 1}
    assert await outbox.due(4.9, 9) == []
    assert await outbox.due(5.0, 9) == [Due(request_id="a", url="http://hook.example/a")]
    letter = await outbox.letter("a", 5.0)
    assert letter is not None
    assert (letter.request_id, letter.url, letter.attempts) == ("a", "http://hook.example/a", 0)
    assert '"status": "OK"' in letter.body


async def test_a_failed_attempt_is_followed_by_another(store: Store, outbox: Outbox) -> None:
    """It is due again at its time, with the same body, and knows how often it was tried."""
    await finish(store, "a", "http://hook.example", 5.0)
    before = await outbox.letter("a", 5.0)
    assert before is not None
    await outbox.mark_failed("a", "answered 500", 12.0)
    assert await outbox.due(11.9, 9) == []
    assert await outbox.letter("a", 11.9) is None
    assert await outbox.next_due(5.0) == 12.0
    assert await outbox.letter("a", 12.0) == Letter(
        request_id="a", owner="local", url=before.url, body=before.body, attempts=1
    )
    assert (await row_of(store, "a"))["last_error"] == "answered 500"


@pytest.mark.parametrize("end", ["delivered", "abandoned"])
async def test_an_ended_webhook_stays_ended(store: Store, outbox: Outbox, end: str) -> None:
    """No later mark brings it back, and it is never due again."""
    await finish(store, "a", "http://hook.example", 5.0)
    if end == "delivered":
        await outbox.mark_delivered("a")
    else:
        await outbox.mark_failed("a", "answered 410", None)
    await outbox.mark_failed("a", "late", 7.0)
    await outbox.mark_delivered("a")
    assert await outbox.counts() == {end: 1}
    assert await outbox.due(100.0, 9) == []
    assert await outbox.next_due(0.0) is None
    assert await outbox.letter("a", 100.0) is None
    assert (await row_of(store, "a"))["attempts"] == 1


async def test_no_receiver_hides_another(store: Store, outbox: Outbox) -> None:
    """However many are due for one receiver, the others' oldest are in the answer."""
    for number in range(30):
        await finish(store, f"dead{number}", f"http://dead.example:81/hook?n={number}", number)
    await finish(store, "good0", "https://good.example/x", 40.0)
    await finish(store, "good1", "HTTPS://Good.example#y", 41.0)
    await finish(store, "late", "https://late.example", 99.0)
    due = await outbox.due(50.0, 2)
    assert [item.request_id for item in due] == ["dead0", "dead1", "good0", "good1"]
    assert await outbox.next_due(50.0) == 99.0


@pytest.mark.parametrize(
    "url", ["", "x", "http://", "http://\u00fc", pytest.param("a" * 10_000, id="long"), "a\x00b"]
)
async def test_no_url_breaks_the_search(store: Store, outbox: Outbox, url: str) -> None:
    """A caller may send anything as a webhook; it must not hide those of others."""
    await finish(store, "odd", url or "?", 1.0)
    await finish(store, "good", "http://good.example", 2.0)
    assert {item.request_id for item in await outbox.due(3.0, 1)} == {"odd", "good"}


async def test_the_search_never_reads_what_it_does_not_give(store: Store) -> None:
    """With any backlog it jumps from receiver to receiver in the index: no scan of the table."""

    def plans(connection: sqlite3.Connection) -> list[str]:
        queries = Outbox(store)._queries
        parameters = {"now": 1.0, "limit": 4, "request_id": "a"}
        return [
            row["detail"]
            for name in ("due", "next_due", "letter")
            for row in connection.execute(f"EXPLAIN QUERY PLAN {queries[name]}", parameters)
        ]

    for detail in await store.read(plans):
        assert not detail.startswith("SCAN webhooks"), detail


async def test_an_erased_job_takes_its_webhook_along(store: Store, outbox: Outbox) -> None:
    """A prompt that was erased must not live on in the outbox."""
    await finish(store, "a", "http://hook.example", 5.0)
    await outbox.mark_delivered("a")
    await store.erase_expired(1e9)
    job = await store.get("a")
    assert job is None
    assert await outbox.counts() == {}


async def test_pending_webhooks_survive_reopening(tmp_path: Path) -> None:
    """What was not acknowledged is there again, body and all."""
    store = Store(tmp_path)
    await store.open()
    await finish(store, "a", "http://hook.example", 5.0)
    before = await Outbox(store).letter("a", 5.0)
    await store.close()
    store = Store(tmp_path)
    await store.open()
    assert await Outbox(store).letter("a", 5.0) == before
    job = await store.get("a")
    assert job is not None
    assert job.status is JobStatus.COMPLETED
    await store.close()
