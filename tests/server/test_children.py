"""Child processes: started, ended and never left behind."""

import asyncio
import socket
from pathlib import Path

import pytest

from server.children import spawn

pytestmark = pytest.mark.anyio

CHILD = """
import signal, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as connection:
    connection.sendall(" ".join(sys.argv[2:]).encode() + b"\\n")
    if sys.argv[2] == "deaf":
        while True:
            signal.pause()
    connection.recv(1)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which the module `child` is found."""
    (tmp_path / "child.py").write_text(CHILD)
    return {"PYTHONPATH": str(tmp_path)}


async def test_a_child_hears_and_answers(environment: dict[str, str]) -> None:
    """Arguments arrive, the socket works, and hanging up ends a child that listens."""
    child = await spawn("child", "one", "two", environment=environment)
    assert await child.reader.readline() == b"one two\n"
    await child.end(60)
    assert child.process.returncode == 0


async def test_a_deaf_child_is_killed(environment: dict[str, str]) -> None:
    """A child that does not end by itself is killed when patience is over; twice does no harm."""
    child = await spawn("child", "deaf", environment=environment)
    assert await child.reader.readline() == b"deaf\n"
    await child.end(0)
    assert child.process.returncode == -9
    await child.end(0)


async def test_a_failed_start_leaves_no_socket(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that the system refuses is an OSError, and both ends of the pair are closed."""
    pairs: list[socket.socket] = []

    def make_pair() -> tuple[socket.socket, socket.socket]:
        pairs.extend(make())
        return pairs[0], pairs[1]

    make = socket.socketpair

    async def refuse(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(socket, "socketpair", make_pair)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    with pytest.raises(BlockingIOError):
        await spawn("child", environment=environment)
    await asyncio.sleep(0)  # the transport closes at the loop's next turn
    assert [pair.fileno() for pair in pairs] == [-1, -1]
