"""Delivers the webhooks of the outbox: at least once each, signed as fal signs, in fal's spirit.

Nothing here is waited for by a request or a runner: a receiver that is down, slow or hostile
costs one of a few places. What is on its way when the server dies is sent again by the next one,
with the same id and the same body.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

import structlog

from server.clock import Clock
from server.delivery import Result, Verdict
from server.signing import Signer
from server.store.outbox import Due, Letter, Outbox

log = structlog.get_logger(__name__)

RETRY_SECONDS = (7, 14, 28, 56, 112, 224, 448, 896, 1792, 3584)
"""The waits after each failed attempt: 1 + 10 attempts over two hours."""

JITTER = 0.2
"""Each wait is up to this part shorter or longer, so that receivers are not hit in step."""

MAX_ATTEMPTS_AT_ONCE = 16
MAX_ATTEMPTS_AT_ONCE_PER_HOST = 2
FAILURE_PAUSE_SECONDS = 0.5
"""How much longer a failed attempt keeps its place at the host: a receiver that refuses at once
gets no more than four attempts a second, so that a backlog for it costs next to no time here."""

STORAGE_RETRY_SECONDS = 1.0
LONGEST_STORAGE_RETRY_SECONDS = 60.0


class Carrier(Protocol):
    """What makes one attempt; see `delivery.Courier`."""

    async def deliver(self, url: str, headers: Mapping[str, str], body: bytes) -> Verdict:
        """POST the body, in bounded time."""

    async def close(self) -> None:
        """Let go of what it holds."""


def retry_delay(attempts: int, chance: float) -> float | None:
    """Return the seconds to wait after so many failed attempts, or None to give up.

    `chance` is a random number from 0 to 1.
    """
    if attempts > len(RETRY_SECONDS):
        return None
    return RETRY_SECONDS[attempts - 1] * (1 + JITTER * (2 * chance - 1))


class WebhookSender:
    """Attempts what is due in the outbox, a few at once, and sleeps until something is.

    `clock` is that of the stored times, `wall_clock` what receivers compare timestamps with,
    `on_attempt` hears the result of each attempt: `delivered`, `failed` or `abandoned`.
    """

    def __init__(
        self,
        outbox: Outbox,
        carrier: Carrier,
        signer: Signer,
        clock: Clock,
        *,
        wall_clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        on_attempt: Callable[[str], None] = lambda _result: None,
        failure_pause_seconds: float = FAILURE_PAUSE_SECONDS,
    ) -> None:
        self._outbox = outbox
        self._carrier = carrier
        self._signer = signer
        self._clock = clock
        self._wall_clock = wall_clock
        self._chance = chance
        self._on_attempt = on_attempt
        self._failure_pause_seconds = failure_pause_seconds
        self._wake = asyncio.Event()
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._busy_hosts: Counter[str] = Counter()

    async def start(self) -> None:
        """Load the keys and begin to deliver, first of all what an earlier server has left.

        Raises `ConfigurationError` when a key cannot be read.
        """
        await asyncio.to_thread(self._signer.load)
        self._loop = asyncio.create_task(self._run(), name="webhooks")

    def wake(self) -> None:
        """Tell the sender that there is a new webhook, or that the clock was moved."""
        self._wake.set()

    async def stop(self, seconds: float = 0.0) -> None:
        """Begin no more attempts, give those under way `seconds`, then cut them off.

        What was cut off stays due and is not charged.
        """
        self._stopping = True
        self._wake.set()
        if self._loop:
            await asyncio.wait({self._loop})
        if self._attempts:
            _, late = await asyncio.wait(set(self._attempts.values()), timeout=seconds)
            for attempt in late:
                attempt.cancel()
            if late:
                await asyncio.wait(late)
        await self._carrier.close()

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                seconds = await self._launch()
            except Exception:
                log.exception("the outbox cannot be read", retry_seconds=STORAGE_RETRY_SECONDS)
                seconds = STORAGE_RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    async def _launch(self) -> float | None:
        """Begin what is due and has a place; return the seconds until more will be due.

        Every place that is left wakes the loop, so what has none now is looked at again.
        """
        if len(self._attempts) >= MAX_ATTEMPTS_AT_ONCE:
            return None
        now = self._clock()
        # Those under way are among them, and for each of them one place less is free.
        for due in await self._outbox.due(now, MAX_ATTEMPTS_AT_ONCE_PER_HOST):
            host = _host(due.url)
            if (
                due.request_id not in self._attempts
                and self._busy_hosts[host] < MAX_ATTEMPTS_AT_ONCE_PER_HOST
                and len(self._attempts) < MAX_ATTEMPTS_AT_ONCE
                and not self._stopping
            ):
                self._busy_hosts[host] += 1
                self._attempts[due.request_id] = asyncio.create_task(self._attempt(due, host))
        next_due = await self._outbox.next_due(now)
        return None if next_due is None else max(0.0, next_due - self._clock())

    async def _attempt(self, due: Due, host: str) -> None:
        pause = 0.0
        try:
            # Read again: what the loop saw may be older than the end of an earlier attempt.
            letter = await self._outbox.letter(due.request_id, self._clock())
            if letter:
                verdict = await self._send(letter)
                if verdict.result is Result.FAILED:
                    pause = self._failure_pause_seconds
                await self._record(letter, host, verdict)
        except Exception:
            log.exception("a webhook stumbled", request_id=due.request_id)
            # In its place: the row is still due, and would be taken up again at once.
            await asyncio.sleep(STORAGE_RETRY_SECONDS)
        finally:
            del self._attempts[due.request_id]
            self._wake.set()
            asyncio.get_running_loop().call_later(pause, self._leave, host)

    def _leave(self, host: str) -> None:
        self._busy_hosts[host] -= 1
        if not self._busy_hosts[host]:
            del self._busy_hosts[host]
        self._wake.set()

    async def _send(self, letter: Letter) -> Verdict:
        body = letter.body.encode("utf-8")
        timestamp = str(int(self._wall_clock()))
        headers = {
            "Content-Type": "application/json",
            "X-Fal-Webhook-Request-Id": letter.request_id,
            "X-Fal-Webhook-User-Id": letter.owner,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": self._signer.sign(
                letter.request_id, letter.owner, timestamp, body
            ),
        }
        try:
            return await self._carrier.deliver(letter.url, headers, body)
        except Exception:
            # Counted as any failure: a letter that breaks our own code must not be tried for ever.
            log.exception("a webhook broke its delivery", request_id=letter.request_id)
            return Verdict(Result.FAILED, "fault of the sender")

    async def _record(self, letter: Letter, host: str, verdict: Verdict) -> None:
        """Store what came of the attempt, then tell of it."""
        attempts = letter.attempts + 1
        delay = retry_delay(attempts, self._chance()) if verdict.result is Result.FAILED else None
        result = verdict.result
        if result is Result.FAILED and delay is None:
            result = Result.ABANDONED
        next_attempt_at = None if delay is None else self._clock() + delay
        reason = None if result is Result.DELIVERED else verdict.reason or ""
        await self._mark(letter.request_id, reason, next_attempt_at)
        self._on_attempt(result.value)
        write = log.info if result is Result.DELIVERED else log.warning
        write(
            f"webhook {result}",
            request_id=letter.request_id,
            host=host,
            attempt=attempts,
            reason=verdict.reason,
            retry_seconds=delay and round(delay, 1),
        )

    async def _mark(
        self, request_id: str, reason: str | None, next_attempt_at: float | None
    ) -> None:
        """Mark the row, however long the storage refuses, keeping the place.

        Without the mark the next attempt would follow at once, again and again.
        """
        pause = STORAGE_RETRY_SECONDS
        while True:
            try:
                if reason is None:
                    await self._outbox.mark_delivered(request_id)
                else:
                    await self._outbox.mark_failed(request_id, reason, next_attempt_at)
            except Exception:
                log.exception("cannot store, trying again", request_id=request_id)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_STORAGE_RETRY_SECONDS)
            else:
                return


def _host(url: str) -> str:
    """Return the host of a target for counting; the URL itself when it has none."""
    try:
        return urlsplit(url).hostname or url
    except ValueError:
        return url
