"""Keys from outside: the commands beside a running server, real clients, limits and a flood."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    SCRIPTS,
    WAIT_SECONDS,
    Api,
    client_environment,
    connect,
    poll_until,
)
from tests.contract.fault_server import ENDPOINT, INSTANT, held, start_fault_server

COMMAND = str(Path(sys.executable).parent / "flux2-serve")
FLOOD_CLIENTS = 50
FLOOD_REQUESTS = int(os.environ.get("FLOOD_REQUESTS", "1000"))
"""Set it to 20000 for the full size."""


def keys_command(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `flux2-serve keys` on a data folder."""
    return subprocess.run(
        [COMMAND, "keys", *arguments, "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


@dataclass(frozen=True)
class Key:
    """A key as its creator got it."""

    credential: str

    @property
    def id(self) -> str:
        """The public part."""
        return self.credential.partition(":")[0]


def create(data_dir: Path, *arguments: str) -> Key:
    """Make a key with the command, which prints it on the first line of its output."""
    done = keys_command(data_dir, "create", "--name", "a test", *arguments)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    name, _, credential = line.partition("=")
    assert name == "FAL_KEY"
    return Key(credential)


@dataclass(frozen=True)
class Box:
    """A server that was started with two keys in its folder, the second with small limits."""

    server: RunningServer
    first: Key
    second: Key

    def connect(self, key: Key | None) -> httpx2.Client:
        """Return a client that sends a key, or none."""
        headers = {"authorization": f"Key {key.credential}"} if key else {}
        return connect(self.server, **headers)


@pytest.fixture(scope="module")
def box(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Return such a server with https."""
    data_dir = tmp_path_factory.mktemp("keys") / "data"
    first = create(data_dir)
    second = create(data_dir, "--queued-jobs", "2", "--requests-per-minute", "0")
    server = start_fault_server(start_server, data_dir, FLUX2_TLS_PORT="0")
    yield Box(server, first, second)
    assert server.stop() == 0


def test_the_commands_show_a_secret_once(tmp_path: Path) -> None:
    """`create` prints it, `list` never does, and `revoke` takes the id or the whole key."""
    key = create(tmp_path, "--storage-bytes", "5GiB", "--requests-per-minute", "60")
    secret = key.credential.partition(":")[2]
    assert secret.startswith("f2s_")
    shown = keys_command(tmp_path, "list").stdout
    assert secret not in shown
    head, row = shown.splitlines()
    assert head.split() == [
        "ID",
        "NAME",
        "CREATED",
        "QUEUED",
        "PER",
        "MINUTE",
        "STORAGE",
        "SAFETY",
        "STATE",
    ]
    assert row.split() == [
        key.id,
        "a",
        "test",
        row.split()[3],
        "100",
        "60",
        "5.0GiB",
        "-",
        "active",
    ]
    create(tmp_path, "--safety", "optional")
    assert keys_command(tmp_path, "list").stdout.splitlines()[-1].split()[-2:] == [
        "optional",
        "active",
    ]
    assert keys_command(tmp_path, "revoke", key.credential).returncode == 0
    assert " revoked 2" in keys_command(tmp_path, "list").stdout
    unknown = keys_command(tmp_path, "revoke", "nobody")
    assert (unknown.returncode, "no key with the id" in unknown.stderr) == (2, True)
    for wrong in (("--storage-bytes", "much"), ("--queued-jobs", "-1"), ("--safety", "no")):
        assert keys_command(tmp_path, "create", "--name", "x", *wrong).returncode == 2


def test_the_real_client_has_a_key_of_its_own(box: Box) -> None:
    """The whole life of a request with fal's Python client; the other key sees none of it."""
    environment = client_environment(box.server) | {"FAL_KEY": box.first.credential}
    script = (
        "import fal_client, json\n"
        f"handle = fal_client.submit({ENDPOINT!r}, arguments={INSTANT!r})\n"
        "print(json.dumps([handle.request_id, handle.get()['images'][0]['url']]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=environment,
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    request_id = done.stdout.split('"')[1]
    path = f"/queue/{ENDPOINT}/requests/{request_id}"
    expected = {box.first: 200, box.second: 404, None: 401}
    for key, code in expected.items():
        with box.connect(key) as http:
            assert http.get(path).status_code == code
    environment["FAL_KEY"] = f"{box.first.id}:wrong"
    refused = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert refused.returncode != 0
    assert "Authentication is required to access this application" in refused.stderr


def test_a_running_server_follows_the_commands(box: Box) -> None:
    """A new key works and a revoked one is refused within seconds, without a restart."""
    key = create(box.server.data_dir)

    def answered(code: int) -> bool:
        with box.connect(key) as http:
            return http.get(f"/queue/{ENDPOINT}/requests/none/status").status_code == code

    poll_until(lambda: answered(404), "the new key is known", 10)
    assert keys_command(box.server.data_dir, "revoke", key.id).returncode == 0
    poll_until(lambda: answered(401), "the revoked key is refused", 10)
    with box.connect(box.first) as http:
        assert http.get(f"/queue/{ENDPOINT}/requests/none/status").status_code == 404


def test_a_damaged_key_file_is_told_and_opens_nothing(box: Box) -> None:
    """Readiness names it, known keys go on, and no stranger gets in."""
    path = box.server.data_dir / "keys" / "api-keys.json"
    good = path.read_bytes()
    path.write_text("{")
    with box.connect(box.first) as http, box.connect(None) as stranger:

        def told(word: str) -> bool:
            answer = stranger.get("/health/ready")
            assert answer.status_code == 200
            return bool(answer.json()["keys"].startswith(word))

        poll_until(lambda: told("the key file cannot be used"), "the damage is told", 10)
        assert http.post(f"/{ENDPOINT}", json=INSTANT).status_code == 200
        assert stranger.post(f"/{ENDPOINT}", json=INSTANT).status_code == 401
        path.write_bytes(good)
        poll_until(lambda: told("ok"), "the file is whole again", 10)


def test_a_key_at_its_limit_leaves_room_for_others(box: Box) -> None:
    """The third request in the queue is 429 on both routes; the other key goes on."""
    with box.connect(box.second) as http, box.connect(box.first) as other:
        api = Api(http)
        running = api.submit(ENDPOINT, held())
        api.wait(running, "IN_PROGRESS")
        waiting = [api.submit(ENDPOINT, INSTANT) for _ in range(2)]
        for path in (f"/queue/{ENDPOINT}", f"/{ENDPOINT}"):
            answer = http.post(path, json=INSTANT)
            assert answer.status_code == 429
            assert answer.headers["x-fal-error-type"] == "queue_full"
            assert int(answer.headers["retry-after"]) > 0
        waiting_too = Api(other).submit(ENDPOINT, INSTANT)
        api.cancel(running)
        for kept in (running, *waiting):
            api.wait(kept)
        Api(other).wait(waiting_too)


async def _flood(base_url: str, key: Key, kept: str) -> tuple[list[str], int, list[float]]:
    """Submit from many clients at once; return who was accepted, how many not, status times."""
    accepted: list[str] = []
    refused = 0
    seconds: list[float] = []
    left = iter(range(FLOOD_REQUESTS))
    headers = {"authorization": f"Key {key.credential}"}
    is_over = asyncio.Event()

    async def submit(http: httpx2.AsyncClient) -> None:
        nonlocal refused
        for _ in left:
            answer = await http.post(f"/queue/{ENDPOINT}", json=INSTANT)
            if answer.status_code == 200:
                accepted.append(answer.json()["request_id"])
            else:
                assert answer.status_code == 429, answer.text
                assert int(answer.headers["retry-after"]) > 0
                refused += 1

    async def watch(http: httpx2.AsyncClient) -> None:
        while not is_over.is_set():
            started = time.perf_counter()
            assert (await http.get(f"{kept}/status")).status_code == 202
            seconds.append(time.perf_counter() - started)

    async with httpx2.AsyncClient(
        base_url=base_url,
        headers=headers,
        timeout=WAIT_SECONDS,
        trust_env=False,
        limits=httpx2.Limits(max_connections=FLOOD_CLIENTS + 1),
    ) as http:
        watching = asyncio.create_task(watch(http))
        await asyncio.gather(*(submit(http) for _ in range(FLOOD_CLIENTS)))
        is_over.set()
        await watching
    return accepted, refused, seconds


def test_a_flood_is_refused_or_ends(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of the requests is accepted or 429, and whatever was accepted comes to its end."""
    with box.connect(box.first) as http:
        api = Api(http)
        running = api.submit(ENDPOINT, held())
        api.wait(running, "IN_PROGRESS")
        started = time.perf_counter()
        accepted, refused, seconds = asyncio.run(_flood(box.server.http, box.first, running))
        took = time.perf_counter() - started
        assert len(accepted) + refused == FLOOD_REQUESTS
        assert len(accepted) == len(set(accepted)) == 100
        api.cancel(running)
        for request_id in accepted:
            answer = api.wait(f"/queue/{ENDPOINT}/requests/{request_id}")
            assert answer.status_code == 200
    p99 = sorted(seconds)[int(len(seconds) * 0.99)]
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{FLOOD_REQUESTS} requests in {took:.1f} s: {len(accepted)} accepted, {refused} "
            f"refused; status p99 {p99 * 1000:.1f} ms of {len(seconds)}"
        )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])  # noqa: S104  (refused, that is the test)
def test_an_open_door_to_the_network_is_refused(tmp_path: Path, host: str) -> None:
    """Without any key it does not start on such an address, and says both ways out."""
    done = subprocess.run(
        [COMMAND, "serve", "--port", "0", "--tls-port", "none"],
        env={
            **os.environ,
            "FLUX2_HOST": host,
            "FLUX2_SAFETY": "off",
            "FLUX2_MODEL": str(tmp_path),
            "FLUX2_DATA_DIR": str(tmp_path / "data"),
        },
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "flux2-serve keys create" in done.stderr
    assert "FLUX2_ALLOW_ANONYMOUS=1" in done.stderr


def test_with_a_key_it_serves_the_network(start_server: StartServer, tmp_path: Path) -> None:
    """A key in the file is enough; strangers hear 401."""
    key = create(tmp_path)
    server = start_fault_server(start_server, tmp_path, FLUX2_HOST="0.0.0.0")  # noqa: S104
    address = server.http.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    for headers, code in (({}, 401), ({"authorization": f"Key {key.credential}"}, 404)):
        answer = httpx2.get(
            f"{address}/queue/{ENDPOINT}/requests/x", headers=headers, trust_env=False
        )
        assert answer.status_code == code
    assert server.stop() == 0
