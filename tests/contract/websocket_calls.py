"""Websockets of a running server, opened and read without any of fal's clients."""

import json
import socket
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_socket

from tests.conftest import RunningServer
from tests.contract.conftest import WAIT_SECONDS
from tests.contract.fault_server import ENDPOINT

REALTIME = f"/{ENDPOINT}/realtime"

Answer = dict[str, Any]


def talk(
    server: RunningServer, path: str = REALTIME, host: str | None = None, **headers: str
) -> ClientConnection:
    """Open a websocket; `host` is the name by which the server is asked."""
    address = server.http.removeprefix("http://")
    name, _, port = address.rpartition(":")
    return open_socket(
        f"ws://{host or address}{path}",
        sock=socket.create_connection((name, int(port)), WAIT_SECONDS),
        additional_headers={key.replace("_", "-"): value for key, value in headers.items()},
        open_timeout=WAIT_SECONDS,
        proxy=None,
        legacy=True,
    )


def ask(line: ClientConnection, body: Answer) -> Answer:
    """Send an input in MessagePack and return what comes next."""
    line.send(msgpack.packb(body))
    return read(line)


def read(line: ClientConnection) -> Answer:
    """Return the next message."""
    message = line.recv(WAIT_SECONDS)
    answer: Answer = json.loads(message) if isinstance(message, str) else msgpack.unpackb(message)
    return answer


def settle(line: ClientConnection) -> None:
    """Return when the server has read all that was sent so far."""
    assert line.ping().wait(WAIT_SECONDS)


def end_code(line: ClientConnection) -> int | None:
    """Wait for the end of a connection and return the code that the server gave."""
    with pytest.raises(ConnectionClosed) as caught:
        line.recv(WAIT_SECONDS)
    return caught.value.rcvd.code if caught.value.rcvd else None


def refusal(server: RunningServer, *arguments: Any, **headers: str) -> tuple[int, Answer]:
    """Return how a websocket is refused: the status and the body."""
    with pytest.raises(InvalidStatus) as caught:
        talk(server, *arguments, **headers)
    response = caught.value.response
    assert response.headers["x-fal-request-id"]
    return response.status_code, json.loads(bytes(response.body or b""))
