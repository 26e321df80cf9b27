"""Listening sockets that know how many connections each address holds open."""

import contextlib
import resource
import socket
from collections import Counter

import structlog

from server.errors import ConfigurationError

log = structlog.get_logger(__name__)

BACKLOG = 2048
FEW_FILES = 4096
"""With fewer open files than this, a busy server may run out of them."""


class Visitors:
    """Counts the open connections of each address, over all sockets that share it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count one more, unless the address has its fill."""
        if self._open[address] >= self._limit:
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Count one less; nothing is kept of an address that has none."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class _Connection(socket.socket):
    """A connection that is counted until it is closed."""

    visitors: Visitors
    address: str | None = None

    def close(self) -> None:
        """Close, once, and leave the count."""
        address, self.address = self.address, None
        super().close()
        if address is not None:
            self.visitors.leave(address)


class Listener(socket.socket):
    """A listening socket for asyncio that hangs up on an address above its limit.

    It counts where connections are accepted, so that those that never finish a TLS handshake, or
    a line of HTTP, count too.
    """

    visitors: Visitors

    def accept(self) -> tuple[socket.socket, object]:
        """Accept a connection. Raises `ConnectionAbortedError` for one that was hung up on."""
        plain, peer = super().accept()
        connection = _Connection(plain.family, plain.type, plain.proto, fileno=plain.detach())
        address = str(peer[0])
        if not self.visitors.enter(address):
            connection.close()
            raise ConnectionAbortedError
        connection.visitors, connection.address = self.visitors, address
        return connection, peer


def listen_on(host: str, port: int, visitors: Visitors) -> Listener:
    """Listen on an address. Raises `ConfigurationError` when the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only on sockets that say they are TCP; with it on,
    # every answer on a kept-open connection waits 40 ms for the client's delayed ACK.
    bound = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.visitors = visitors
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return bound


def raise_file_limit() -> int:
    """Allow this process as many open files as it may have, and return how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # the kernel has a limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        log.warning("few open files are allowed; raise the limit (ulimit -n)", limit=hard)
    return hard
