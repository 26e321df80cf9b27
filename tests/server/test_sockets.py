"""Listening sockets: so many connections for each address, and no more."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from server.errors import ConfigurationError
from server.sockets import Listener, Visitors, listen_on, raise_file_limit

pytestmark = pytest.mark.anyio

LIMIT = 3
WAIT_SECONDS = 20


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    """Return two listening sockets that share one count."""
    visitors = Visitors(LIMIT)
    found = [listen_on("127.0.0.1", 0, visitors) for _ in range(2)]
    yield found
    for listener in found:
        listener.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back each line until the end."""
    while line := await reader.readline():
        writer.write(line)
    writer.close()


async def is_served(
    listener: Listener, source: str = "127.0.0.1"
) -> tuple[bool, asyncio.StreamWriter]:
    """Connect from an address; tell whether what is sent comes back."""
    reader, writer = await asyncio.open_connection(
        *listener.getsockname()[:2], local_addr=(source, 0)
    )
    writer.write(b"hello\n")
    async with asyncio.timeout(WAIT_SECONDS):
        try:
            return await reader.readline() == b"hello\n", writer
        except ConnectionResetError:
            return False, writer


async def test_one_address_has_its_fill_over_all_ports(listeners: list[Listener]) -> None:
    """One more is hung up on, another address is not, and who leaves makes room."""
    servers = [await asyncio.start_server(echo, sock=listener) for listener in listeners]
    first, second = listeners
    kept = [await is_served(listener) for listener in (first, second, first)]
    assert [served for served, _ in kept] == [True] * LIMIT
    refused = [await is_served(listener) for listener in listeners]
    assert [served for served, _ in refused] == [False, False]
    other = await is_served(first, "127.0.0.2")
    assert other[0]
    kept[0][1].close()
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            served, writer = await is_served(second)
            refused.append((served, writer))
            if served:
                break
    for _, writer in (*kept, *refused, other):
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    async with asyncio.timeout(WAIT_SECONDS):
        while first.visitors._open:  # noqa: ASYNC110  (a closed socket sets no event)
            await asyncio.sleep(0)
    for server in servers:
        server.close()


def test_the_count_forgets_who_left() -> None:
    """A day's visitors take no memory at night, and nobody is counted twice."""
    visitors = Visitors(1)
    assert visitors.enter("192.0.2.1")
    assert not visitors.enter("192.0.2.1")
    visitors.leave("192.0.2.1")
    assert visitors._open == {}
    assert visitors.enter("192.0.2.1")


def test_a_taken_port_is_a_mistake_of_the_settings(listeners: list[Listener]) -> None:
    """The operator reads which one."""
    port = listeners[0].getsockname()[1]
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
        listen_on("127.0.0.1", port, Visitors(1))


def test_the_limit_on_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as this process may, and a low end of that is told."""
    limits = {"now": (64, 1024)}

    def set_limit(_which: int, wanted: tuple[int, int]) -> None:
        limits["now"] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert raise_file_limit() == 1024
    assert limits["now"] == (1024, 1024)


def test_connections_are_without_delay(listeners: list[Listener]) -> None:
    """Asyncio sets TCP_NODELAY on sockets that say they are TCP, which these do."""
    with socket.create_connection(listeners[0].getsockname()):
        accepted, _ = listeners[0].accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP
