"""A real server with short limits: slow clients are cut on both ports, patient ones are not."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.fault_server import ENDPOINT, held, start_fault_server

LIMIT_SECONDS = 0.5
MOST_CONNECTIONS = 20
MOST_BYTES = 2**20
WAIT_SECONDS = 30
HEAD = f"POST /{ENDPOINT} HTTP/1.1\r\nHost: localhost\r\n".encode()


@pytest.fixture(scope="module")
def server(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return such a server; in the end its log must have no failure of its own in it."""
    found = start_fault_server(
        start_server,
        tmp_path_factory.mktemp("slow"),
        FLUX2_TLS_PORT="0",
        FLUX2_HEADER_SECONDS=str(LIMIT_SECONDS),
        FLUX2_BODY_SECONDS=str(LIMIT_SECONDS),
        FLUX2_BODY_LIMIT_BYTES=str(MOST_BYTES),
        FLUX2_CONNECTIONS_PER_ADDRESS=str(MOST_CONNECTIONS),
    )
    yield found
    assert found.stop() == 0
    assert not [line for line in found.lines if "Traceback" in line or "unhandled" in line]


def connect(url: str) -> socket.socket:
    """Open a plain connection to a port of the server."""
    plain = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), WAIT_SECONDS)
    plain.settimeout(WAIT_SECONDS)
    return plain


def read_all(connection: socket.socket) -> bytes:
    """Read until the server hangs up."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD, 408),
        (HEAD + b'Content-Length: 100\r\n\r\n{"prompt', 408),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", 408),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"\x16\x03\x01\x00", 400),
    ],
)
def test_slow_and_broken_requests(server: RunningServer, sent: bytes, status: int) -> None:
    """They are answered in fal's form, and the connection is closed."""
    with connect(server.http) as connection:
        connection.sendall(sent)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nconnection: close" in head
    assert json.loads(body)["detail"]


def test_a_silent_client(server: RunningServer) -> None:
    """It is hung up on without a word, on both ports: nothing was asked that could be answered."""
    for url in (server.http, server.https):
        with connect(url) as connection:
            assert read_all(connection) == b""


def is_answered(connection: socket.socket) -> bool:
    """Ask on a connection; False when the server hung up on it."""
    try:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


def test_one_address_has_so_many_connections(server: RunningServer) -> None:
    """Over both ports, handshakes under way included; when some leave, others are served."""
    with contextlib.ExitStack() as kept:
        # The others first: answers after them show that they were accepted.
        for _ in range(MOST_CONNECTIONS // 2):
            kept.enter_context(connect(server.https))
        for _ in range(MOST_CONNECTIONS // 2):
            assert is_answered(kept.enter_context(connect(server.http)))
        with connect(server.http) as one_more:
            assert not is_answered(one_more)
    deadline = threading.Event()
    for _ in range(1000):
        with connect(server.http) as another:
            if is_answered(another):
                return
        deadline.wait(0.01)
    pytest.fail("nobody was served again")


def test_who_waits_for_an_image_is_not_slow(server: RunningServer, tmp_path: Path) -> None:
    """Neither the synchronous caller nor the reader of a stream is cut while the server works."""
    gate = tmp_path / "gate"
    opened = threading.Timer(4 * LIMIT_SECONDS, gate.touch)
    with httpx2.Client(base_url=server.http, trust_env=False, timeout=WAIT_SECONDS) as http:
        queued = http.post(f"/queue/{ENDPOINT}", json=held(gate)).json()
        path = f"/queue/{ENDPOINT}/requests/{queued['request_id']}/status/stream"
        opened.start()
        with http.stream("GET", path) as events:
            last = [line for line in events.iter_lines() if line.startswith("data: ")][-1]
        assert json.loads(last.removeprefix("data: "))["status"] == "COMPLETED"
        gate.unlink()
        threading.Timer(4 * LIMIT_SECONDS, gate.touch).start()
        assert http.post(f"/{ENDPOINT}", json=held(gate)).status_code == 200


def test_a_body_above_the_limit_is_answered_before_it_is_sent(server: RunningServer) -> None:
    """Who asks first gets the refusal; who sends at once gets it too, and not a reset."""
    size = MOST_BYTES + 1
    length = f"Content-Length: {size}\r\n".encode()
    with connect(server.http) as connection:
        connection.sendall(HEAD + length + b"Expect: 100-continue\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")
    with httpx2.Client(base_url=server.http, trust_env=False, timeout=WAIT_SECONDS) as http:
        answer = http.post(f"/{ENDPOINT}", content=b" " * size)
        assert answer.status_code == 413
        assert http.get("/health").status_code == 200
