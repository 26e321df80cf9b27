"""Websockets from outside: order and buffering, limits, who leaves, and HTTP over them."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import Api, connect, poll_until
from tests.contract.fault_server import ENDPOINT, INSTANT, held, start_fault_server
from tests.contract.test_stream import count_open_files
from tests.contract.websocket_calls import (
    REALTIME,
    Answer,
    ask,
    end_code,
    read,
    refusal,
    settle,
    talk,
)

MANY = 20
MOST_SOCKETS = 30
BODY_LIMIT_BYTES = 2**20


@pytest.fixture(scope="module")
def server(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server without keys whose requests end when the test says so."""
    found = start_fault_server(
        start_server,
        tmp_path_factory.mktemp("data"),
        FLUX2_SOCKETS_PER_KEY=str(MOST_SOCKETS),
        FLUX2_BODY_LIMIT_BYTES=str(BODY_LIMIT_BYTES),
    )
    yield found
    assert found.stop() == 0
    assert not [line for line in found.lines if "unhandled" in line or "ASGI" in line]


@pytest.fixture
def box(server: RunningServer) -> Iterator[Api]:
    """Return plain calls on that server."""
    with connect(server) as http:
        yield Api(http)


def test_json_messages_are_answered_in_json(server: RunningServer, box: Api) -> None:
    """With the images as the same request has them in HTTP: URLs, or data URIs if asked."""
    with talk(server) as line:
        line.send(json.dumps(INSTANT))
        (image,) = read(line)["images"]
        assert box.http.get(image["url"]).headers["content-type"] == "image/png"
        line.send(json.dumps({**INSTANT, "sync_mode": True}))
        (image,) = read(line)["images"]
        assert image["url"].startswith("data:image/png;base64,")


def test_raw_images_leave_no_file(server: RunningServer) -> None:
    """What is in the answer is nowhere else."""
    files = set((server.data_dir / "files").rglob("*.*"))
    with talk(server) as line:
        (image,) = ask(line, INSTANT)["images"]
        assert image["content"].startswith(b"\x89PNG")
    assert set((server.data_dir / "files").rglob("*.*")) == files


def test_errors_leave_the_connection_open(server: RunningServer) -> None:
    """Each mistake has its answer, in its place; the next input is answered as if nothing were."""
    with talk(server) as line:
        for message, word in (
            (msgpack.packb({"prompt": "A", "num_images": 9}), "INVALID_INPUT"),
            (msgpack.packb("only a prompt"), "INVALID_INPUT"),
            (b"\xc1", "BAD_REQUEST"),
            ("{", "INVALID_INPUT"),
            ("[]", "INVALID_INPUT"),
            (msgpack.packb({**INSTANT, "prompt": "error"}), "RUNNER_SERVER_ERROR"),
            (msgpack.packb({**INSTANT, "prompt": "refuse"}), "INVALID_INPUT"),
        ):
            line.send(message)
            told = read(line)
            assert (told["type"], told["error"]) == ("x-fal-error", word)
            assert "secret" not in json.dumps(told)
        assert ask(line, INSTANT)["images"]


def test_newer_inputs_take_the_place_of_older_ones(server: RunningServer, tmp_path: Path) -> None:
    """`max_buffering` wait, two by default; what is answered is answered in order."""
    for query, kept in (("?max_buffering=3", "adef"), ("", "aef"), ("?max_buffering=1", "af")):
        gate = tmp_path / f"gate{query}"
        with talk(server, REALTIME + query) as line:
            line.send(msgpack.packb({**held(gate), "request_id": "a"}))
            settle(line)
            for tag in "bcdef":
                line.send(msgpack.packb({**INSTANT, "request_id": tag}))
            settle(line)
            gate.touch()
            assert [read(line)["request_id"] for _ in kept] == list(kept)
            # No answer to a dropped one is on its way.
            assert ask(line, {**INSTANT, "request_id": "z"})["request_id"] == "z"


@pytest.mark.parametrize("value", ["0", "61", "-1", "x", "", "1.5"])
def test_a_wrong_buffering_is_refused(server: RunningServer, value: str) -> None:
    """With what it may be."""
    status, body = refusal(server, f"{REALTIME}?max_buffering={value}")
    assert (status, body["error_type"]) == (400, "bad_request")


def test_unknown_paths_are_told_in_http(server: RunningServer) -> None:
    """Before anything is accepted."""
    for path in ("/fal-ai/nothing/realtime", f"/{ENDPOINT}/nothing/realtime", f"/{ENDPOINT}", "/"):
        assert refusal(server, path)[0] == 404
    assert refusal(server, f"/ws/{ENDPOINT}/nothing")[0] == 404


def test_twenty_callers_who_leave(server: RunningServer, box: Api) -> None:
    """Whoever runs and whoever waits is cancelled, and no file or connection is left."""
    files = set((server.data_dir / "files").rglob("*.*"))
    opened = count_open_files(server)
    lines = [talk(server, f"/ws/{ENDPOINT}" if number % 2 else REALTIME) for number in range(MANY)]
    for line in lines:
        line.send(json.dumps(held()))
        line.send(json.dumps(held()))
    poll_until(lambda: backlog(box) == (MANY - 1, 1), "all but one wait")
    for line in lines:
        line.socket.shutdown(socket.SHUT_RDWR)  # no goodbye
    poll_until(lambda: backlog(box) == (0, 0), "nothing is left to do")
    poll_until(lambda: count_open_files(server) <= opened, "all connections are closed")
    assert set((server.data_dir / "files").rglob("*.*")) == files
    assert box.run(ENDPOINT, INSTANT).status_code == 200


def backlog(box: Api) -> tuple[float, float]:
    """Return how many requests wait, and how many run."""
    lines = [line for line in box.http.get("/metrics").text.splitlines() if line[0] != "#"]
    counts = {"flux2_queue_depth": 0.0, "flux2_queue_running": 0.0}
    for line in lines:
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name in counts:
            counts[name] += float(value)
    return counts["flux2_queue_depth"], counts["flux2_queue_running"]


def test_so_many_websockets_for_one_key(server: RunningServer) -> None:
    """Of all kinds together; who leaves makes room."""
    with contextlib.ExitStack() as lines:
        for number in range(MOST_SOCKETS):
            path = f"/ws/{ENDPOINT}" if number % 2 else REALTIME
            lines.enter_context(talk(server, path))
        assert refusal(server)[0] == 429
    poll_until(lambda: is_open(server), "there is room again")


def is_open(server: RunningServer) -> bool:
    """Say whether a websocket is accepted."""
    try:
        talk(server).close()
    except InvalidStatus:
        return False
    return True


def test_a_message_as_long_as_a_body_may_be(server: RunningServer) -> None:
    """One byte more ends the connection, with the code for it."""
    with talk(server) as line:
        line.send(json.dumps(INSTANT).ljust(BODY_LIMIT_BYTES))
        assert read(line)["images"]
        line.send(" " * (BODY_LIMIT_BYTES + 1))
        assert end_code(line) == 1009


def test_pages_of_others_open_no_websocket(server: RunningServer) -> None:
    """A server without keys is protected by `Origin` and `Host` alone, and browsers ask nobody."""
    for path in (REALTIME, f"/ws/{ENDPOINT}", f"/{ENDPOINT}/realtime?fal_jwt_token=x"):
        status, body = refusal(server, path, origin="https://evil.example")
        assert (status, "may not call" in body["detail"]) == (403, True)
        assert refusal(server, path, "evil.example")[0] == 400
    with talk(server, origin="http://localhost:3000") as line:
        assert ask(line, INSTANT)["images"]


def exchange(line: ClientConnection) -> tuple[Answer, Answer, Answer]:
    """Return start, body and end of an answer of HTTP."""
    start, body, end = (read(line) for _ in range(3))
    assert (start.pop("type"), end.pop("type")) == ("start", "end")
    assert start["request_id"] == end["request_id"] == start["headers"]["x-fal-request-id"]
    assert start["status"] == end["status"]
    assert end["time_to_first_byte_seconds"] > 0
    return start, body, end


@pytest.mark.parametrize(
    ("path", "host"), [(f"/ws/{ENDPOINT}", None), (f"/{ENDPOINT}", "ws.fal.run")]
)
def test_http_over_a_websocket(
    server: RunningServer, box: Api, tmp_path: Path, path: str, host: str | None
) -> None:
    """Answers are those of HTTP, success and error, in the order of the requests."""
    gate = tmp_path / "gate"
    with talk(server, path, host) as line:
        line.send(json.dumps(held(gate)))
        line.send(json.dumps({"prompt": "A", "num_images": 9}))
        line.send("{")
        line.send(json.dumps(INSTANT).encode("ascii"))
        settle(line)
        gate.touch()
        answers = [exchange(line) for _ in range(4)]
    assert [start["status"] for start, _, _ in answers] == [200, 422, 422, 200]
    (start, body, _), wrong = answers[0], answers[1]
    same = box.run(ENDPOINT, {"prompt": "A", "num_images": 9})
    assert wrong[1] == same.json()
    for name in ("x-fal-billable-units", "content-type", "x-fal-needs-retry"):
        assert wrong[0]["headers"][name] == same.headers[name]
    assert body["images"][0]["width"] == 512
    assert start["headers"]["x-flux2-settings"]
    assert box.status(f"/queue/{ENDPOINT}/requests/{start['request_id']}").status_code == 200


def test_too_many_requests_over_one_websocket(server: RunningServer) -> None:
    """None of them may be dropped, so the connection ends, and with it the one that runs."""
    with talk(server, f"/ws/{ENDPOINT}") as line:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(MANY):
                line.send(json.dumps(held()))
        assert end_code(line) == 1008


def test_a_silent_websocket_is_closed(start_server: StartServer, tmp_path: Path) -> None:
    """In fal's words, and with a normal end; not while an answer is due."""
    server = start_fault_server(start_server, tmp_path / "data", FLUX2_SOCKET_IDLE_SECONDS="1")
    gate = tmp_path / "gate"
    with talk(server) as line:
        told = read(line)
        assert (told["type"], told["error"]) == ("x-fal-error", "TIMEOUT")
        assert end_code(line) == 1000
    with talk(server, f"/ws/{ENDPOINT}") as line:
        assert end_code(line) == 1000
    with talk(server) as line:
        line.send(msgpack.packb(held(gate)))
        with pytest.raises(TimeoutError):
            line.recv(1.5)
        gate.touch()
        assert read(line)["images"]
    with talk(server) as line:
        line.send(msgpack.packb(held()))
        settle(line)
        server.process.terminate()
        server.wait_for('"stopping"')
        server.process.terminate()  # this time it does not wait for the image
        told = read(line)
        assert (told["error"], told["status_code"]) == ("RUNNER_DISCONNECTED", 503)
        assert end_code(line) == 1012
    assert server.stop() == 0
