"""The status stream of a running server, as `@fal-ai/client` reads it and over bare HTTP."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    SMALL_INPUTS,
    WAIT_SECONDS,
    Api,
    check_image,
    connect,
    poll_until,
    skip_or_fail,
)
from tests.contract.fault_server import ENDPOINT, INSTANT, held, start_fault_server

SCRIPTS = Path(__file__).parent / "js"
ORDER = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
MANY = 100
STOP_SECONDS = 15

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def fault_server(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server whose requests end when the test says so."""
    server = start_fault_server(start_server, tmp_path_factory.mktemp("data"))
    yield server
    assert server.stop() == 0


@pytest.fixture
def box(fault_server: RunningServer) -> Iterator[Api]:
    """Return plain calls on that server."""
    with connect(fault_server) as http:
        yield Api(http)


def read_events(answer: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Yield the events of an open stream as they come; comments are skipped, as clients do."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            found: dict[str, Any] = json.loads(line.removeprefix("data: "))
            yield found


def words(events: Events) -> list[str]:
    """Return the states that were told, without repetitions."""
    told = [event["status"] for event in events]
    return [word for i, word in enumerate(told) if told[i - 1 : i] != [word]]


def messages(events: Events) -> list[str]:
    """Return all log lines of all events."""
    return [line["message"] for event in events for line in event["logs"] or ()]


def count_open_files(server: RunningServer) -> int:
    """Count what the gateway holds open: each of its connections is one of them."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_javascript_client(api: Api, server: RunningServer) -> None:
    """`subscribe` in streaming mode tells every state, every log line once, and the image."""
    node = shutil.which("node")
    if node is None:
        skip_or_fail("node is not installed")
    if not (SCRIPTS / "node_modules" / "@fal-ai" / "client").is_dir():
        skip_or_fail("@fal-ai/client is not installed: run `npm ci` in tests/contract/js")
    wrong = {"prompt": "A", "num_images": 9}
    arguments = [ENDPOINT, json.dumps(SMALL_INPUTS[ENDPOINT]), json.dumps(wrong)]
    done = subprocess.run(
        [node, "stream_status.mjs", f"{server.http}/api/fal/proxy", *arguments],
        cwd=SCRIPTS,
        env={"PATH": os.environ.get("PATH", "")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    updates, (last,) = found["updates"], found["late"]
    assert words(updates)[-2:] == ORDER[-2:]
    assert words(updates) == sorted(words(updates), key=ORDER.index)
    # The client adds up what each event brings, so a line sent twice would be in here twice.
    assert updates[-1]["logs"] == found["status"]["logs"] == last["logs"]
    assert sum("step 2 of" in line["message"] for line in last["logs"]) == 1
    assert last["status"] == "COMPLETED"
    assert found["lateId"] == found["subscribed"]["requestId"]
    (image,) = found["subscribed"]["data"]["images"]
    check_image(api, image, (512, 512), "png")
    assert (found["wrong"]["name"], found["wrong"]["status"]) == ("ValidationError", 422)
    assert found["unknown"]["status"] == 404
    assert found["unknown"]["body"] == {"status": "NOT_FOUND"}


def test_every_state_is_an_event(box: Api, tmp_path: Path) -> None:
    """From the queue to the end, log lines once each; then the server closes the stream."""
    first, second = tmp_path / "first", tmp_path / "second"
    before = box.submit(ENDPOINT, held(first))
    box.wait(before, "IN_PROGRESS")
    kept = box.submit(ENDPOINT, held(second))
    events: Events = []
    with box.http.stream("GET", f"{kept}/status/stream?logs=1") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-fal-request-id"] in kept
        for event in read_events(answer):
            events.append(event)
            if event["status"] == "IN_QUEUE":
                first.touch()
            if event["status"] == "IN_PROGRESS":
                second.touch()
    assert words(events) == ORDER
    assert events[0]["queue_position"] == 0
    final = box.status(kept, logs="1").json()
    assert {**events[-1], "logs": final["logs"]} == final
    assert messages(events) == [line["message"] for line in final["logs"]]
    assert messages(events)[0].startswith("Started")


def test_cancelled_and_invalid_requests_end_too(box: Api) -> None:
    """The last event says COMPLETED, and why, as polling does."""
    kept = box.submit(ENDPOINT, held())
    with box.http.stream("GET", f"{kept}/status/stream") as answer:
        for event in read_events(answer):
            if event["status"] != "COMPLETED":
                box.cancel(kept)
    assert event == box.status(kept).json()
    assert event["error_type"] == "client_cancelled"
    assert event["logs"] is None
    kept = box.submit(ENDPOINT, {**INSTANT, "num_images": 9})
    with box.http.stream("GET", f"{kept}/status/stream") as answer:
        assert [event["status"] for event in read_events(answer)][-1] == "COMPLETED"


def test_unknown_request(box: Api) -> None:
    """It is 404 in JSON before any event, also under another application's name."""
    kept = box.submit(ENDPOINT, INSTANT)
    nobody = "00000000-0000-4000-8000-000000000000"
    for path in (
        f"/queue/fal-ai/flux-2/requests/{nobody}",
        kept.replace("fal-ai/flux-2/", "fal-ai/flux-2-flex/"),
    ):
        answer = box.http.get(f"{path}/status/stream")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {"status": "NOT_FOUND"}


async def read_many(server: RunningServer, kept: list[str], gate: Path) -> list[Events]:
    """Open a stream on each request, open the gate once all have begun, and read all to the end."""
    begun = 0

    async def read(http: httpx2.AsyncClient, path: str) -> Events:
        nonlocal begun
        events: Events = []
        async with http.stream("GET", f"{path}/status/stream?logs=1") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
                    begun += len(events) == 1
                    if begun == len(kept):
                        gate.touch()
        return events

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=server.http, timeout=WAIT_SECONDS, limits=limits, trust_env=False
    ) as http:
        return await asyncio.gather(*(read(http, path) for path in kept))


def test_many_streams_end(fault_server: RunningServer, box: Api, tmp_path: Path) -> None:
    """A hundred at once, half on one request: each gets every line once, and its end."""
    gate = tmp_path / "gate"
    running = box.submit(ENDPOINT, held(gate))
    box.wait(running, "IN_PROGRESS")
    before = count_open_files(fault_server)
    queued = [box.submit(ENDPOINT, INSTANT) for _ in range(MANY // 2)]
    followed = [running] * (MANY // 2) + queued
    for path, events in zip(
        followed, asyncio.run(read_many(fault_server, followed, gate)), strict=True
    ):
        assert words(events)[-1] == "COMPLETED"
        assert words(events) == sorted(words(events), key=ORDER.index)
        final = box.status(path, logs="1").json()["logs"]
        assert messages(events) == [line["message"] for line in final]
    poll_until(lambda: count_open_files(fault_server) <= before, "all connections are closed")


def open_stream(server: RunningServer, kept: str, receive_bytes: int = 0) -> socket.socket:
    """Open a stream and read nothing of it; `receive_bytes` bounds what the kernel takes for us."""
    address = urlsplit(server.http)
    opened = socket.socket()
    if receive_bytes:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    opened.settimeout(WAIT_SECONDS)
    opened.connect((address.hostname, address.port))
    request = f"GET {kept}/status/stream?logs=1 HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n"
    opened.sendall(request.encode())
    return opened


def test_callers_who_leave(fault_server: RunningServer, box: Api) -> None:
    """Nothing stays open for them, though nothing happens to the request; and it goes on."""
    running = box.submit(ENDPOINT, held())
    box.wait(running, "IN_PROGRESS")
    before = count_open_files(fault_server)
    queued = box.submit(ENDPOINT, INSTANT)
    with contextlib.ExitStack() as streams:
        for number in range(MANY):
            stream = open_stream(fault_server, (running, queued)[number % 2])
            streams.enter_context(stream)
            assert stream.recv(12) == b"HTTP/1.1 200"
        assert count_open_files(fault_server) >= before + MANY
    poll_until(lambda: count_open_files(fault_server) <= before, "all connections are closed")
    assert box.status(running).json()["status"] == "IN_PROGRESS"
    assert box.status(queued).json()["status"] == "IN_QUEUE"
    box.cancel(running)
    assert box.wait(queued).json()["status"] == "COMPLETED"


def test_a_reader_who_takes_nothing_delays_nobody(
    fault_server: RunningServer, box: Api, tmp_path: Path
) -> None:
    """Others on the same request hear of its end at once; its own rest waits for it."""
    gate = tmp_path / "gate"
    kept = box.submit(ENDPOINT, held(gate))
    with open_stream(fault_server, kept, receive_bytes=4096) as slow:
        events: Events = []
        with box.http.stream("GET", f"{kept}/status/stream?logs=1") as answer:
            for event in read_events(answer):
                events.append(event)
                if len(events) == 100:
                    gate.touch()
        assert words(events)[-1] == "COMPLETED"
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            piece = slow.recv(65536)
            assert piece, "the stream was cut off"
            received += piece
    assert received.count(b"data: ") >= 100
    assert b'"COMPLETED"' in received


@pytest.mark.parametrize("word", ["IN_QUEUE", "IN_PROGRESS"])
def test_a_stop_ends_streams(start_server: StartServer, tmp_path: Path, word: str) -> None:
    """The server does not wait for those who wait for it; every answer is whole."""
    mode = "hold" if word == "IN_QUEUE" else "resume"
    server = start_fault_server(
        start_server, tmp_path / "data", FLUX2_START_MODE=mode, FLUX2_DRAIN_SECONDS="0"
    )
    with connect(server) as http, contextlib.ExitStack() as opened:
        box = Api(http)
        kept = box.submit(ENDPOINT, held())
        box.wait(kept, word)
        streams = [
            opened.enter_context(http.stream("GET", f"{kept}/status/stream")) for _ in range(10)
        ]
        readers = [read_events(stream) for stream in streams]
        assert {next(reader)["status"] for reader in readers} == {word}
        server.process.terminate()
        for reader in readers:
            assert "COMPLETED" not in {event["status"] for event in reader}
    assert server.process.wait(STOP_SECONDS) == 0
