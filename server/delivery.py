"""One attempt to deliver a webhook: to whom it may connect, how long it may take, what came of it.

The receiver is a stranger. Its answer is judged by the status alone; no text of it is kept.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx2

from server.errors import ConfigurationError
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

SCHEMES = ("http", "https")

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Gives the addresses to connect to for a host. Raises `RefusedTargetError` or OSError."""


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


def trusted_authorities(ca_file: Path | None) -> ssl.SSLContext:
    """Trust the system's authorities, and those of `ca_file` too.

    Raises `ConfigurationError` when the file has none.
    """
    context = httpx2.create_ssl_context(trust_env=False)
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ConfigurationError(f"{ca_file} has no certificates: {error}") from error
    return context


class Courier:
    """Carries letters to the addresses that `resolve` gives for a host, and nowhere else."""

    def __init__(
        self,
        resolve: Resolve,
        context: ssl.SSLContext,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        self._resolve = resolve
        self._attempt_seconds = attempt_seconds
        self._client = httpx2.AsyncClient(
            verify=context,
            trust_env=False,
            follow_redirects=False,
            headers={"user-agent": "flux2-serve", "accept-encoding": "identity"},
            timeout=httpx2.Timeout(attempt_seconds, connect=CONNECT_SECONDS),
            # No connection is used twice: the pool knows it by its address alone, and TLS has
            # checked it for one of the names that may share the address.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def deliver(self, url: str, headers: Mapping[str, str], body: bytes) -> Verdict:
        """POST the body and judge the answer; whatever the receiver does, this ends in time."""
        try:
            async with asyncio.timeout(self._attempt_seconds):
                response = await self._post(_read_url(url), headers, body)
        except RefusedTargetError as error:
            return _verdict(Result.ABANDONED, f"refused: {error}")
        except TimeoutError:
            return _verdict(Result.FAILED, f"no answer in {self._attempt_seconds:g} seconds")
        except httpx2.ConnectError as error:
            return _verdict(Result.FAILED, f"cannot be connected to: {error}")
        except httpx2.TransportError as error:
            return _verdict(Result.FAILED, f"broke off: {type(error).__name__}")
        except OSError as error:
            return _verdict(Result.FAILED, f"cannot be resolved: {error}")
        with contextlib.suppress(TimeoutError, httpx2.TransportError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await _drain(response)
        return judge_status(response.status_code)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def _post(
        self, url: httpx2.URL, headers: Mapping[str, str], body: bytes
    ) -> httpx2.Response:
        """Try the addresses in turn until one can be connected to."""
        host = url.raw_host.decode("ascii")
        *others, last = await self._resolve(host)
        for address in others:
            with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await self._post_to(address, url, headers, body)
        return await self._post_to(last, url, headers, body)

    async def _post_to(
        self, address: str, url: httpx2.URL, headers: Mapping[str, str], body: bytes
    ) -> httpx2.Response:
        """Connect to the address; HTTP and TLS still go by the host's name."""
        request = self._client.build_request(
            "POST",
            url.copy_with(host=address),
            headers={**headers, "host": url.netloc.decode("ascii")},
            content=body,
            extensions={"sni_hostname": url.raw_host.decode("ascii").removesuffix(".")},
        )
        return await self._client.send(request, stream=True)


def _read_url(text: str) -> httpx2.URL:
    """Parse the target with the parser that also connects. Raises `RefusedTargetError`."""
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise RefusedTargetError(str(error)) from error
    if url.scheme not in SCHEMES or not url.raw_host:
        raise RefusedTargetError("not an http or https URL")
    if url.port is not None and not 0 < url.port < 65536:
        raise RefusedTargetError(f"{url.port} is not a port")
    return url


async def _drain(response: httpx2.Response) -> None:
    left = DRAIN_BYTES
    try:
        async for chunk in response.aiter_raw():
            left -= len(chunk)
            if left <= 0:
                break
    finally:
        await response.aclose()


def _verdict(result: Result, reason: str) -> Verdict:
    return Verdict(result, reason[:REASON_CHARACTERS])
