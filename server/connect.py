"""A proxy that leads fal's host names to this server, and goes nowhere else.

Programs that cannot be given other hosts can be given a proxy (`HTTPS_PROXY`). They send
`CONNECT fal.run:443`, hear that it worked, and begin TLS. Here the very connection they sent it on
is handed to the HTTPS server then: this module opens none, so it can be led to nobody's address.
"""

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import Awaitable, Callable

import structlog

from server.hosts import FAL_HOSTS

log = structlog.get_logger(__name__)

HEAD_BYTES = 8 * 1024
HEAD_END = b"\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
PURPOSE = (
    "This port is a proxy for programs that use fal: it answers CONNECT to fal's own host names "
    "on port 443, and nothing else.\n"
)

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/1\.[01]")
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_RETRY_SECONDS = 1.0
"""How long to wait for room when no further connection can be had, as asyncio does."""

TakeOver = Callable[[socket.socket], Awaitable[None]]
"""Serves HTTPS on a connection. Owns it from the call on; raises `OSError` when TLS fails."""


class _RefusedError(Exception):
    """The caller gets this status line and an explanation."""


async def lead_to_us(bound: socket.socket, take_over: TakeOver, head_seconds: float) -> None:
    """Answer on a listening socket until cancelled; callers half through are dropped then.

    `head_seconds` is how long a caller may take for its request, as on the other ports.
    """
    bound.setblocking(False)
    async with asyncio.TaskGroup() as callers:
        while True:
            connection = await _accept(bound)
            if connection:
                callers.create_task(_lead(connection, take_over, head_seconds))


async def _accept(bound: socket.socket) -> socket.socket | None:
    """Return the next connection, None for one that was gone again."""
    try:
        connection, _ = await asyncio.get_running_loop().sock_accept(bound)
    except OSError as error:
        if error.errno in _NO_ROOM:
            log.error("no room for another connection", reason=error.strerror)
            await asyncio.sleep(ACCEPT_RETRY_SECONDS)
        return None
    return connection


async def _lead(connection: socket.socket, take_over: TakeOver, head_seconds: float) -> None:
    try:
        with contextlib.ExitStack() as ours:
            ours.callback(connection.close)
            async with asyncio.timeout(head_seconds):
                if not await _answer(connection):
                    return
            ours.pop_all()
        await take_over(connection)
    except OSError as error:  # also ssl.SSLError and TimeoutError: the caller left, or dawdled
        log.debug("a connection to the proxy ended early", reason=str(error))
    except Exception:
        log.exception("a connection to the proxy failed")


async def _answer(connection: socket.socket) -> bool:
    """Read the request and answer it; tell whether TLS comes next."""
    loop = asyncio.get_running_loop()
    try:
        check_request(await _read_head(connection))
    except _RefusedError as refusal:
        await loop.sock_sendall(connection, _refusal(str(refusal)))
        connection.shutdown(socket.SHUT_WR)
        # Closing with something unread would reset the connection, and take the answer with it.
        while await loop.sock_recv(connection, HEAD_BYTES):
            pass
        return False
    await loop.sock_sendall(connection, ESTABLISHED)
    return True


def check_request(head: bytes) -> None:
    """Raise `_RefusedError` unless the head asks for one of fal's names on port 443."""
    match = _REQUEST_LINE.fullmatch(head.partition(b"\r\n")[0])
    if not match:
        raise _RefusedError("400 Bad Request")
    if match[1] != b"CONNECT":
        raise _RefusedError("405 Method Not Allowed")
    name, _, port = match[2].decode("latin-1").rpartition(":")
    if name.lower().removesuffix(".") not in FAL_HOSTS or port != "443":
        raise _RefusedError("403 Forbidden")


async def _read_head(connection: socket.socket) -> bytes:
    """Read up to the empty line, and not a byte further: what follows is for TLS."""
    head = b""
    while not head.endswith(HEAD_END):
        await _wait_readable(connection)
        piece = connection.recv(HEAD_BYTES, socket.MSG_PEEK)
        if not piece:
            raise ConnectionAbortedError("no whole request came")
        end = (head + piece).find(HEAD_END)
        size = len(piece) if end < 0 else end + len(HEAD_END) - len(head)
        head += connection.recv(size)
        if len(head) > HEAD_BYTES:
            raise _RefusedError("431 Request Header Fields Too Large")
    return head


async def _wait_readable(connection: socket.socket) -> None:
    """Wait without reading, which `loop.sock_recv` cannot."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)


def _refusal(status: str) -> bytes:
    allow = "allow: CONNECT\r\n" if status.startswith("405") else ""
    head = (
        f"HTTP/1.1 {status}\r\n{allow}content-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(PURPOSE)}\r\nconnection: close\r\n\r\n"
    )
    return (head + PURPOSE).encode("ascii")
