"""A process that completes jobs and delivers their webhooks, for a test that kills it.

`python -m tests.server.webhook_child DATA_DIR URL COUNT` goes on where the last one was killed,
and ends by itself once COUNT jobs are completed and all of their webhooks delivered.
"""

import asyncio
import sys
from pathlib import Path

from server import jobs
from server.clock import SteadyClock
from server.delivery import Courier
from server.jobs import Job, Outcome
from server.outbound import Outbound, trusted_authorities
from server.signing import Signer
from server.store import Store
from server.store.outbox import Outbox
from server.targets import AllowList
from server.webhooks import WebhookSender


async def work(data_dir: Path, url: str, count: int) -> None:
    """Complete the jobs `job0`, `job1`, ... and deliver until nothing is left."""
    store, clock = Store(data_dir), SteadyClock()
    outbox = Outbox(store)
    everything_tried = asyncio.Event()
    await store.open()
    allowed = AllowList.parse("FLUX2_WEBHOOK_ALLOW", ["127.0.0.1"])
    sender = WebhookSender(
        outbox,
        Courier(Outbound(allowed.resolve, trusted_authorities(None))),
        Signer(data_dir / "keys"),
        clock,
        on_attempt=lambda _result: everything_tried.set(),
    )
    await sender.start()
    for number in range(count):
        await complete(store, clock, number, url)
        sender.wake()
    while (await outbox.counts()).get("pending"):
        everything_tried.clear()
        if (await outbox.counts()).get("pending"):
            await everything_tried.wait()
    await sender.stop()
    await store.close()


async def complete(store: Store, clock: SteadyClock, number: int, url: str) -> None:
    """Bring one job to its end, wherever an earlier process left it."""
    request_id = f"job{number}"
    job = await store.get(request_id)
    if job is None:
        job = Job(
            request_id=request_id,
            endpoint_id="fal-ai/flux-2",
            owner="local",
            origin="http://box",
            input="{}",
            created_at=clock(),
            webhook_url=f"{url}/{number}",
        )
        await store.insert(job)
    if job.outcome is None:
        outcome = Outcome(http_status=200, body=f'{{"seed": {number}}}', keep_seconds=3600)
        now = clock()
        await store.change(request_id, lambda found: jobs.complete(found, outcome, now))


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
