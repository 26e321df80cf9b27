"""The one way out: HTTP to strangers, with the decision about the target made at the socket.

Only what is needed is there. No proxy, no cookie, no redirect, no credential and nothing from the
environment: httpcore2 has none of these unless asked.
"""

import contextlib
import re
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path

import httpcore2
import httpx2

from server.errors import ConfigurationError
from server.targets import RefusedTargetError

SCHEMES = ("http", "https")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses to connect to for a host and port.

Raises `RefusedTargetError`, or OSError when there are none; see `targets.AllowList.resolve`.
"""

_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")
"""A name in punycode, an IPv4 address, or an IPv6 address without a zone."""


class OutboundError(Exception):
    """There was no usable answer; the message says why and holds nothing that came from there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and the way to its body."""

    status: int
    headers: httpx2.Headers
    _response: httpcore2.Response

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the body as it comes, at most 64 KiB at a time. Raises `OutboundError`."""
        with _own_errors():
            async for chunk in self._response.aiter_stream():
                yield chunk


class Outbound:
    """Sends requests to the addresses that `resolve` gives for a host, and nowhere else."""

    def __init__(
        self,
        resolve: Resolve,
        context: ssl.SSLContext,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        guard = _Guard(resolve, network or httpcore2.AnyIOBackend())
        # No connection is used twice, so that each request is decided about.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=guard,
        )

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        connect_seconds: float,
        silence_seconds: float,
    ) -> AsyncIterator[Answer]:
        """Send a request and give the head of the answer as soon as it is there.

        `url` comes from `read_url`. `connect_seconds` is for each address of the host and for
        TLS, `silence_seconds` for each wait on the other side: the caller limits the whole.
        Raises `RefusedTargetError` and `OutboundError`.
        """
        host = url.raw_host.decode("ascii")
        sent = {"host": url.netloc.decode("ascii"), "accept-encoding": "identity", **headers}
        limits = {
            "connect": connect_seconds,
            "read": silence_seconds,
            "write": silence_seconds,
        }
        async with contextlib.AsyncExitStack() as stack:
            with _own_errors():
                response = await stack.enter_async_context(
                    self._pool.stream(
                        method,
                        httpcore2.URL(
                            scheme=url.raw_scheme,
                            host=url.raw_host,
                            port=url.port,
                            target=url.raw_path,
                        ),
                        headers=[(name.encode(), value.encode()) for name, value in sent.items()],
                        content=body,
                        extensions={"timeout": limits, "sni_hostname": host.removesuffix(".")},
                    )
                )
            yield Answer(response.status, httpx2.Headers(response.headers), response)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._pool.aclose()


class _Guard(httpcore2.AsyncNetworkBackend):
    """Decides about a target and connects to it in one step; TLS still goes by the name."""

    def __init__(self, resolve: Resolve, network: httpcore2.AsyncNetworkBackend) -> None:
        self._resolve = resolve
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (the name is httpcore2's)
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first of the allowed addresses that answers."""
        try:
            *others, last = await self._resolve(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved: {error}") from error
        rest = (port, timeout, local_address, socket_options)
        for address in others:
            with contextlib.suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return await self._network.connect_tcp(address, *rest)
        return await self._network.connect_tcp(last, *rest)


def read_url(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """Parse a target, or a redirect from `base`, with the parser whose result is connected to.

    Raises `RefusedTargetError` for what is no plain http or https URL: credentials, backslashes,
    control characters, zones and wrong ports are where parsers differ.
    """
    try:
        url = base.join(text) if base else httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise RefusedTargetError(str(error)) from error
    if url.scheme not in SCHEMES or not url.raw_host:
        raise RefusedTargetError("not an http or https URL")
    if "\\" in text:
        raise RefusedTargetError("a backslash in a URL")
    if url.userinfo:
        raise RefusedTargetError("credentials in a URL")
    if not _HOST.fullmatch(url.raw_host.decode("ascii")):
        raise RefusedTargetError("not a host name")
    if url.port is not None and not 0 < url.port < 65536:
        raise RefusedTargetError(f"{url.port} is not a port")
    return url


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


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
        why = str(error) or "no answer in time"
        raise OutboundError(f"cannot be connected to: {why}") from error
    except (
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.TimeoutException,
        ssl.SSLError,
    ) as error:
        # By its type alone: the text of a protocol error quotes the other side.
        raise OutboundError(f"broke off: {type(error).__name__}") from error
