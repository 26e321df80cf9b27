"""One attempt to deliver a webhook: how long it may take and what came of it.

The receiver is a stranger. Its answer is judged by the status alone; no text of it is kept.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from server.outbound import Answer, Outbound, OutboundError, read_url
from server.targets import RefusedTargetError

ATTEMPT_SECONDS = 15.0
CONNECT_SECONDS = 5.0
"""For each address of a name that has several."""

DRAIN_BYTES = 64 * 1024
DRAIN_SECONDS = 1.0
"""How much of an answer's body is read, and dropped, so that its sender is not cut off."""

REASON_CHARACTERS = 200

RETRIED_STATUSES = (408, 425, 429)
"""The client errors that speak of this moment and not of the request."""


class Result(StrEnum):
    """What came of an attempt: `failed` may be tried again, `abandoned` may not."""

    DELIVERED = "delivered"
    FAILED = "failed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of an attempt and, unless it was delivered, the reason."""

    result: Result
    reason: str | None = None


def judge_status(status: int) -> Verdict:
    """Judge an answer by its HTTP status.

    A redirect is final, as on fal: followed, it could lead anywhere.
    """
    if 200 <= status < 300:
        return Verdict(Result.DELIVERED)
    final = 300 <= status < 500 and status not in RETRIED_STATUSES
    return Verdict(Result.ABANDONED if final else Result.FAILED, f"answered {status}")


class Courier:
    """Carries letters through `outbound`, each attempt in bounded time."""

    def __init__(self, outbound: Outbound, attempt_seconds: float = ATTEMPT_SECONDS) -> None:
        self._outbound = outbound
        self._attempt_seconds = attempt_seconds

    async def deliver(self, url: str, headers: Mapping[str, str], body: bytes) -> Verdict:
        """POST the body and judge the answer; whatever the receiver does, this ends in time."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(self._attempt_seconds):
                    answer = await stack.enter_async_context(self._post(url, headers, body))
                await _drain(answer)
                return judge_status(answer.status)
        except RefusedTargetError as error:
            return _verdict(Result.ABANDONED, f"refused: {error}")
        except TimeoutError:
            return _verdict(Result.FAILED, f"no answer in {self._attempt_seconds:g} seconds")
        except OutboundError as error:
            return _verdict(Result.FAILED, str(error))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._outbound.close()

    def _post(
        self, url: str, headers: Mapping[str, str], body: bytes
    ) -> contextlib.AbstractAsyncContextManager[Answer]:
        return self._outbound.request(
            "POST",
            read_url(url),
            {"user-agent": "flux2-serve", **headers},
            body,
            connect_seconds=CONNECT_SECONDS,
            silence_seconds=self._attempt_seconds,
        )


async def _drain(answer: Answer) -> None:
    """Read and drop some of the body, whatever comes of it."""
    left = DRAIN_BYTES
    with contextlib.suppress(TimeoutError, OutboundError):
        async with asyncio.timeout(DRAIN_SECONDS), contextlib.aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                left -= len(chunk)
                if left <= 0:
                    return


def _verdict(result: Result, reason: str) -> Verdict:
    return Verdict(result, reason[:REASON_CHARACTERS])
