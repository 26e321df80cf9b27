"""A box with an outbox and senders over it, whose clocks a test moves."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from server import jobs
from server.delivery import Courier, Verdict
from server.jobs import Job, Outcome
from server.outbound import Outbound, trusted_authorities
from server.signing import Signer
from server.store import Store
from server.store.outbox import Outbox
from server.targets import AllowList
from server.webhooks import Carrier, WebhookSender

WAIT_SECONDS = 30
START = 1_000.0
WALL_START = 1_900_000_000.0


class Box:
    """A store with an outbox, and senders over it with clocks that stand until moved.

    Use it as an async context manager, which opens the store and stops the last sender.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.now = START
        self.wall = WALL_START
        self.chance = 0.5
        self.failure_pause_seconds = 0.0
        self.results: asyncio.Queue[str] = asyncio.Queue()
        self.store = Store(data_dir)
        self.outbox = Outbox(self.store)
        self.signer = Signer(data_dir / "keys")
        self.sender: WebhookSender | None = None

    async def __aenter__(self) -> Self:
        await self.store.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.sender:
            await self.sender.stop()
        await self.store.close()

    async def start(
        self, carrier: Carrier | None = None, *allowed: str, outbox: Outbox | None = None
    ) -> WebhookSender:
        """Start a sender, by default one that may send to the whole of loopback."""
        listed = AllowList.parse("FLUX2_WEBHOOK_ALLOW", allowed or ["127.0.0.0/8"])
        self.sender = WebhookSender(
            outbox or self.outbox,
            carrier or Courier(Outbound(listed.resolve, trusted_authorities(None))),
            self.signer,
            lambda: self.now,
            wall_clock=lambda: self.wall,
            chance=lambda: self.chance,
            on_attempt=self.results.put_nowait,
            failure_pause_seconds=self.failure_pause_seconds,
        )
        await self.sender.start()
        return self.sender

    async def finish(self, request_id: str, url: str, body: str = '{"seed": 1}') -> None:
        """Accept a job with a webhook, complete it, and wake the sender."""
        job = Job(
            request_id=request_id,
            endpoint_id="fal-ai/flux-2",
            owner="local",
            origin="http://box",
            input="{}",
            created_at=self.now,
            webhook_url=url,
        )
        await self.store.insert(job)
        outcome = Outcome(http_status=200, body=body, keep_seconds=60)
        now = self.now
        await self.store.change(request_id, lambda job: jobs.complete(job, outcome, now))
        if self.sender:
            self.sender.wake()

    async def advance(self, seconds: float) -> None:
        """Move both clocks."""
        self.now += seconds
        self.wall += seconds
        if self.sender:
            self.sender.wake()

    async def result(self) -> str:
        """Return the result of the next attempt that ended."""
        return await asyncio.wait_for(self.results.get(), WAIT_SECONDS)

    async def row(self, request_id: str) -> dict[str, Any]:
        """Return the row of a webhook."""

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            query = "SELECT * FROM webhooks WHERE request_id = ?"
            return dict(connection.execute(query, [request_id]).fetchone())

        return await self.store.read(read)

    async def settle(self) -> None:
        """Let the sender do what it would do now: it has looked at the outbox several times."""
        for _ in range(20):
            if self.sender:
                self.sender.wake()
            await self.outbox.counts()


class FakeCarrier:
    """Gives the verdict of a function, for what no receiver can be made to do."""

    def __init__(self, decide: Callable[[str], Verdict]) -> None:
        self._decide = decide
        self.sent: list[tuple[Mapping[str, str], bytes]] = []

    async def deliver(self, url: str, headers: Mapping[str, str], body: bytes) -> Verdict:
        """Note the letter and decide by the URL."""
        self.sent.append((headers, body))
        return self._decide(url)

    async def close(self) -> None:
        """Hold nothing."""
