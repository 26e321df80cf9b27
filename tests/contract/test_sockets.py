"""Websockets from outside: order and buffering, tokens, limits, who leaves, and HTTP over them."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_socket

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import WAIT_SECONDS, Api, connect, poll_until
from tests.contract.fault_server import ENDPOINT, INSTANT, held, start_fault_server
from tests.contract.test_keys import Key, create, keys_command
from tests.contract.test_stream import count_open_files

REALTIME = f"/{ENDPOINT}/realtime"
OTHER = "fal-ai/flux-2-flex"
MANY = 20
MOST_SOCKETS = 30
BODY_LIMIT_BYTES = 2**20

Answer = dict[str, Any]


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
    server = start_fault_server(start_server, tmp_path / "data", FLUX2_SOCKET_IDLE_SECONDS="0.5")
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
            line.recv(1)
        gate.touch()
        assert read(line)["images"]
    with talk(server) as line:
        line.send(msgpack.packb(held()))
        settle(line)
        for _ in range(2):  # the second one does not wait for the image
            server.process.terminate()
        told = read(line)
        assert (told["error"], told["status_code"]) == ("RUNNER_DISCONNECTED", 503)
        assert end_code(line) == 1012
    assert server.stop() == 0


@pytest.fixture(scope="module")
def keyed(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, Key]]:
    """Return a server that asks for a key, and that key."""
    data_dir = tmp_path_factory.mktemp("keyed") / "data"
    key = create(data_dir)
    server = start_fault_server(start_server, data_dir)
    yield server, key
    assert server.stop() == 0
    assert not [line for line in server.lines if "Traceback" in line or "fal_jwt_token" in line]


def token_for(server: RunningServer, key: Key, app: str, seconds: int = 60) -> str:
    """Get a token as fal's clients do."""
    with connect(server, authorization=f"Key {key.credential}") as http:
        answer = http.post(
            "/rest/tokens/", json={"allowed_apps": [app], "token_expiration": seconds}
        )
    assert answer.status_code == 200
    token = answer.json()
    assert isinstance(token, str)
    return token


def is_refused(server: RunningServer, token: str) -> bool:
    """Say whether a token is refused on a websocket, in the words that both clients know."""
    with talk(server, f"{REALTIME}?fal_jwt_token={token}") as line:
        with contextlib.suppress(ConnectionClosed):
            line.send(msgpack.packb(INSTANT))
        told = read(line)
        if "images" in told:
            return False
        assert (told["type"], told["status"]) == ("x-fal-error", "error")
        assert told["error"] == "Unauthorized"
        assert end_code(line) == 1008
        return True


def test_keys_and_tokens_open_a_websocket(keyed: tuple[RunningServer, Key]) -> None:
    """Without either it is HTTP's 401; a token opens its own application, and HTTP over it none."""
    server, key = keyed
    assert refusal(server)[0] == 401
    assert refusal(server, REALTIME, authorization="Key a:b")[0] == 401
    with talk(server, authorization=f"Key {key.credential}") as line:
        assert ask(line, INSTANT)["images"]
    token = token_for(server, key, "flux-2")
    assert not is_refused(server, token)
    assert is_refused(server, token[:-4] + "AAAA")
    assert is_refused(server, token_for(server, key, OTHER))
    with talk(server, f"/ws/{ENDPOINT}?fal_jwt_token={token}") as line:
        assert read(line)["error"] == "Unauthorized"


def test_a_token_is_good_again_until_it_expires(keyed: tuple[RunningServer, Key]) -> None:
    """Clients come back with the one they have; what is open then stays open."""
    server, key = keyed
    token = token_for(server, key, "flux-2", 2)
    path = f"{REALTIME}?fal_jwt_token={token}"
    with talk(server, path) as line:
        assert not is_refused(server, token)
        poll_until(lambda: is_refused(server, token), "the token expires", 10)
        assert ask(line, INSTANT)["images"]
    with connect(server) as http:
        answer = http.post(f"/{ENDPOINT}/stream?fal_jwt_token={token}", json=INSTANT)
        assert answer.status_code == 401


def test_a_token_streams_and_does_nothing_else(keyed: tuple[RunningServer, Key]) -> None:
    """Not even what belongs to its key."""
    server, key = keyed
    query = {"fal_jwt_token": token_for(server, key, ENDPOINT)}
    other = {"fal_jwt_token": token_for(server, key, OTHER)}

    def status(http: httpx2.Client, method: str, path: str, params: dict[str, str]) -> int:
        return http.request(method, path, params=params, json=INSTANT).status_code

    with connect(server) as http:
        assert status(http, "POST", f"/{ENDPOINT}/stream", query) == 200
        assert status(http, "POST", f"/{ENDPOINT}/stream", other) == 401
        for method, path in (
            ("POST", f"/{ENDPOINT}"),
            ("POST", f"/queue/{ENDPOINT}"),
            ("GET", f"/queue/{ENDPOINT}/requests/x/status/stream"),
            ("POST", f"/queue/{ENDPOINT}/stream"),
            ("POST", "/rest/tokens/"),
            ("GET", f"/v1/models/requests/by-endpoint?endpoint_id={ENDPOINT}"),
        ):
            assert status(http, method, path, query) == 401


def test_a_revoked_key_ends_its_tokens_and_its_websockets(keyed: tuple[RunningServer, Key]) -> None:
    """Also those that are open."""
    server, _ = keyed
    key = create(server.data_dir)

    def is_known() -> bool:
        with connect(server, authorization=f"Key {key.credential}") as http:
            return http.get(f"/queue/{ENDPOINT}/requests/x/status").status_code == 404

    poll_until(is_known, "the new key is known", 10)
    token = token_for(server, key, "flux-2")
    with talk(server, f"{REALTIME}?fal_jwt_token={token}") as line:
        assert ask(line, INSTANT)["images"]
        assert keys_command(server.data_dir, "revoke", key.id).returncode == 0
        poll_until(lambda: is_refused(server, token), "the token is refused", 10)
        assert ask(line, INSTANT)["error"] == "Unauthorized"
        assert end_code(line) == 1008


@pytest.mark.parametrize(
    ("path", "body", "loc"),
    [
        ("/rest/tokens/", {}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": []}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": "flux-2"}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": ["a b"]}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": [""]}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": ["x" * 101]}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": ["x"] * 17}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": ["x"], "token_expiration": 0}, "token_expiration"),
        ("/rest/tokens", {"allowed_apps": ["x"], "token_expiration": 86401}, "token_expiration"),
        ("/rest/tokens/realtime", {"allowed_apps": ["x"], "duration": "long"}, "duration"),
    ],
)
def test_wrong_orders_of_tokens(box: Api, path: str, body: Any, loc: str) -> None:
    """Each is told where it is wrong; without a key the box's own account gets tokens too."""
    answer = box.http.post(path, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", loc]
    good = {"allowed_apps": ["/fal-ai/flux-2/realtime"], "duration": 86400}
    assert isinstance(box.http.post(path, json=good).json(), str)
