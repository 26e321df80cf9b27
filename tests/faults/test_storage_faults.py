"""Disks and databases that fail under a real server: E2 to E7 of the promises."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.faults.conftest import MakeGateway
from tests.faults.gateway import FAULTS, Client, Gateway, wait_until
from tests.faults.rows import files_on_disk, files_on_record, row_of, rows

DISK_BYTES = 16 * 1024 * 1024
RECOVERY_SECONDS = 5.0
YEAR_SECONDS = 365 * 24 * 3600
PAGE_BYTES = 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system in memory; only root may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        if "CI" in os.environ:
            pytest.fail(f"no small disk: {mounted.stderr}")
        pytest.skip(f"no small disk: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk takes no more byte."""
    with path.open("wb", buffering=0) as file:
        for size in (64 * 1024, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def is_refusal(answer: httpx2.Response) -> bool:
    """Say whether the answer is a 503 that tells when to come again."""
    return answer.status_code == 503 and int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("reserve", ["4000000", "0"])
def test_a_full_disk(
    make_gateway: MakeGateway, small_disk: Path, tmp_path: Path, reserve: str
) -> None:
    """E3: new requests are refused, none accepted is lost, and room heals it in five seconds.

    With a reserve the refusals come from it, and without one from the database itself.
    """
    gateway = make_gateway(DISK_RESERVE_BYTES=reserve)
    gateway.data_dir = small_disk / "data"
    client, gate = Client(gateway.start()), tmp_path / "gate"
    accepted = [client.submit(f"hold {gate}"), *(client.submit("plain") for _ in range(5))]
    client.wait_running(accepted[0])
    fill(small_disk / "ballast")
    for _ in range(200):
        answer = client.post("plain " + "x" * 10_000)
        if answer.status_code != 200:
            break
        accepted.append(answer.json()["request_id"])
    assert is_refusal(answer)
    gate.touch()
    gateway.wait_line("cannot store, trying again")
    ready = client.ready()
    assert ready.status_code == 503
    assert ready.json()["reason"].startswith(("disk: ", "storage: "))
    assert client.http.get("/health/live").status_code == 200
    assert client.status(accepted[0]) == "IN_PROGRESS"
    (small_disk / "ballast").unlink()
    freed = time.monotonic()
    wait_until(lambda: client.post("plain").status_code == 200, RECOVERY_SECONDS, "no recovery")
    wait_until(lambda: client.ready().status_code == 200, RECOVERY_SECONDS, "not ready")
    assert time.monotonic() - freed < RECOVERY_SECONDS
    assert {client.wait(request_id).status_code for request_id in accepted} == {200}
    charged = rows(gateway.data_dir, "SELECT DISTINCT attempts, runner_deaths FROM jobs")
    assert charged == [{"attempts": 1, "runner_deaths": 0}]
    gateway.stop()
    assert files_on_disk(gateway.data_dir) == files_on_record(gateway.data_dir)


def test_a_start_on_a_full_disk_says_so(make_gateway: MakeGateway, small_disk: Path) -> None:
    """E3: killed and started again without room, it ends with a reason; with room nothing is lost.

    The running job must be put back before the port opens, and that takes a page.
    """
    gateway = make_gateway()
    gateway.data_dir = small_disk / "data"
    client = Client(gateway.start())
    request_id = client.submit("spin")
    client.wait_running(request_id)
    gateway.kill()
    fill(small_disk / "ballast")
    gateway.spawn()
    code = gateway.wait()
    (small_disk / "ballast").unlink()
    assert code == 2
    assert "flux2-serve: The queue's storage is not available" in gateway.tail()
    gateway.start()
    client = Client(gateway)
    client.wait_running(request_id)
    assert client.cancel(request_id).status_code == 202


@contextmanager
def locked(gateway: Gateway) -> Iterator[None]:
    """Hold the database as a backup tool may."""
    with closing(sqlite3.connect(gateway.data_dir / "queue.sqlite3")) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.rollback()


def test_a_short_lock_is_not_noticed(gateway: Gateway, client: Client) -> None:
    """E4: held for three seconds, a submit takes as long and is accepted; status is as quick."""
    done = client.submit("plain")
    client.wait(done)
    with ThreadPoolExecutor(1) as pool, locked(gateway):
        submitting = pool.submit(client.submit, "plain")
        release = time.monotonic() + 3
        while time.monotonic() < release:
            started = time.monotonic()
            assert client.status(done) == "COMPLETED"
            assert time.monotonic() - started < 1
            assert wait([submitting], timeout=0.1).not_done
    assert client.wait(submitting.result()).status_code == 200


def test_a_long_lock_is_told(gateway: Gateway, client: Client, tmp_path: Path) -> None:
    """E4: held for ten seconds, new requests are 503 with Retry-After and nothing is lost."""
    gate = tmp_path / "gate"
    running, queued = client.submit(f"hold {gate}"), client.submit("plain")
    client.wait_running(running)
    began = time.monotonic()
    with locked(gateway):
        refused = client.post("plain")
        assert is_refusal(refused)
        assert 4 < time.monotonic() - began < 8
        gate.touch()  # only now: a claim would be in the way, and wait for the lock as long
        ready = client.ready()
        assert (ready.status_code, ready.json()["reason"][:8]) == (503, "storage:")
        assert client.http.get("/health/live").status_code == 200
        assert client.status(queued) == "IN_QUEUE"
        wait_until(lambda: time.monotonic() - began > 10, 10, "")
    wait_until(lambda: client.ready().status_code == 200, RECOVERY_SECONDS + 1, "not ready")
    accepted = [running, queued, client.submit("plain")]
    assert {client.wait(request_id).status_code for request_id in accepted} == {200}
    found = rows(gateway.data_dir, "SELECT count(*) AS jobs, max(attempts) AS tries FROM jobs")
    assert found == [{"jobs": 3, "tries": 1}]


@contextmanager
def failing_syncs(gateway: Gateway) -> Iterator[None]:
    """Have the kernel answer every sync of the gateway with an error, by strace."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(gateway.pid)]
    command += ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"]
    with subprocess.Popen(command) as strace:
        tasks = Path(f"/proc/{gateway.pid}/task")

        def is_traced() -> bool:
            return all("TracerPid:\t0" not in (t / "status").read_text() for t in tasks.iterdir())

        wait_until(is_traced, 10, "strace does not attach")
        yield
        strace.send_signal(signal.SIGINT)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace injects the errors")
def test_a_sync_that_fails_is_not_taken_for_done(
    gateway: Gateway, client: Client, tmp_path: Path
) -> None:
    """E2: a request whose commit is not on the disk is not accepted, a result is stored later."""
    gate = tmp_path / "gate"
    running = client.submit(f"hold {gate}")
    client.wait_running(running)
    with failing_syncs(gateway):
        refused = client.post("plain")
        assert is_refusal(refused)
        assert "disk I/O error" in refused.json()["detail"]
        assert client.ready().json()["reason"] == "storage: disk I/O error"
        gate.touch()
        gateway.wait_line("cannot store, trying again")
    assert client.wait(running).status_code == 200
    assert client.wait(client.submit("plain")).status_code == 200
    assert len(rows(gateway.data_dir, "SELECT 1 FROM jobs")) == 2
    gateway.kill()
    gateway.start()
    assert Client(gateway).get(running).status_code == 200
    assert len(rows(gateway.data_dir, "SELECT 1 FROM jobs WHERE http_status = 200")) == 2
    assert files_on_disk(gateway.data_dir) == files_on_record(gateway.data_dir)


def launch(gateway: Gateway, **faults: object) -> None:
    """Have the gateway started with faults from outside."""
    gateway.launcher = (sys.executable, str(FAULTS / "launcher.py"))
    gateway.environment = {"LAUNCHER_FAULTS": json.dumps(faults)}


def test_a_failed_commit_or_file_is_tried_again(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """E2: the first syncs and commits of a finished image fail; it is stored all the same, once."""
    gateway, gate, switch = make_gateway(), tmp_path / "gate", tmp_path / "switch"
    launch(gateway, fsync_errors=2, commit_errors=2, faults_from=str(switch))
    client = Client(gateway.start())
    request_id = client.submit(f"hold {gate}")
    client.wait_running(request_id)
    switch.touch()
    gate.touch()
    assert client.wait(request_id).status_code == 200
    assert gateway.count_lines("cannot store, trying again") == 4
    assert row_of(gateway.data_dir, request_id)["attempts"] == 1
    assert files_on_disk(gateway.data_dir) == files_on_record(gateway.data_dir)


def damage(path: Path, dice: random.Random) -> None:
    """Overwrite a hundred random places, never in a page that is only spare."""
    data = bytearray(path.read_bytes())
    for _ in range(100):
        page = dice.randrange(len(data) // PAGE_BYTES)
        start = page * PAGE_BYTES + (100 if page == 0 else 0)
        data[start : start + 64] = dice.randbytes(64)
    path.write_bytes(data)


@pytest.mark.parametrize("log", ["merged", "waiting"])
def test_a_damaged_database_is_left_alone(make_gateway: MakeGateway, log: str) -> None:
    """E5: the server stops with what to do, changes no byte, and runs again on the backup.

    After a crash part of the truth is in the log; a careless look would merge the two.
    """
    gateway = make_gateway(START_MODE="hold")
    client = Client(gateway.start())
    accepted = [client.submit("plain " + "x" * 3000) for _ in range(100)]
    gateway.stop()
    if log == "waiting":
        gateway.start()
        accepted.append(Client(gateway).submit("plain"))
        gateway.kill()
    database = gateway.data_dir / "queue.sqlite3"
    parts = [database, *([Path(f"{database}-wal")] if log == "waiting" else [])]
    good = {path: path.read_bytes() for path in parts}
    for seed in range(3):
        damage(database, random.Random(seed))
        bad = {path: path.read_bytes() for path in parts}
        gateway.spawn()
        assert gateway.wait() == 2
        assert f"{database} cannot be used" in gateway.tail()
        assert "Restore it from a backup" in gateway.tail()
        assert {path: path.read_bytes() for path in parts} == bad
        for path, data in good.items():
            path.write_bytes(data)
    gateway.settings["START_MODE"] = "resume"
    client = Client(gateway.start())
    assert {client.wait(request_id).status_code for request_id in accepted} == {200}


def test_what_is_no_database_is_left_alone(make_gateway: MakeGateway) -> None:
    """E5: a foreign file in its place is told, not overwritten."""
    gateway = make_gateway()
    gateway.data_dir.mkdir()
    database = gateway.data_dir / "queue.sqlite3"
    database.write_bytes(b"somebody's notes" * 1000)
    gateway.spawn()
    assert gateway.wait() == 2
    assert "file is not a database" in gateway.tail()
    assert database.read_bytes() == b"somebody's notes" * 1000


def test_a_file_that_is_gone_or_cut(gateway: Gateway, client: Client) -> None:
    """E6: it is 410 and counted, never a 500; its result stays as it was."""
    results = [client.wait(client.submit("plain")) for _ in range(3)]
    urls = [httpx2.URL(result.json()["images"][0]["url"]).path for result in results]
    paths = [gateway.data_dir / "files" / Path(url).name[:2] / Path(url).name for url in urls]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    assert [client.http.get(url).status_code for url in urls] == [410, 410, 200]
    assert "flux2_files_missing_total 2.0" in client.http.get("/metrics").text
    request_id = results[0].headers["x-fal-request-id"]
    assert client.get(request_id).content == results[0].content
    gateway.stop()
    gateway.start()
    client = Client(gateway)
    assert [client.http.get(url).status_code for url in urls] == [410, 410, 200]


@pytest.mark.parametrize("jump", [YEAR_SECONDS, -YEAR_SECONDS])
def test_a_jump_of_the_clock(make_gateway: MakeGateway, tmp_path: Path, jump: int) -> None:
    """E7: nothing ends early, deadlines are kept, and the order is that of acceptance."""
    gateway, clock = make_gateway(SWEEP_SECONDS="0.05"), tmp_path / "clock"
    launch(gateway, clock_file=str(clock))
    client = Client(gateway.start())
    done = client.submit("plain")
    client.wait(done)
    running = client.submit("hold")
    client.wait_running(running)
    queued = [client.submit("plain", headers={"x-fal-request-timeout": "1000"}) for _ in range(3)]
    clock.write_text(str(jump))
    queued += [client.submit("plain", headers={"x-fal-request-timeout": "1000"}) for _ in range(3)]
    hasty = client.submit("plain", headers={"x-fal-request-timeout": "0.3"})
    assert client.wait(hasty, seconds=5).status_code == 504
    places = [client.get(name, "/status").json()["queue_position"] for name in queued]
    assert places == [0, 1, 2, 3, 4, 5]
    client.cancel(running)
    assert {client.wait(request_id).status_code for request_id in queued} == {200}
    order = rows(gateway.data_dir, "SELECT request_id FROM jobs ORDER BY started_at, seq")
    assert [row["request_id"] for row in order if row["request_id"] in queued] == queued
    assert client.get(done).status_code == 200
    if jump < 0:  # after a restart the clock of the system counts, but never backwards
        gateway.stop()
        client = Client(gateway.start())
        assert client.wait(client.submit("plain")).status_code == 200
        assert client.get(done).status_code == 200
        (newest, *_) = rows(gateway.data_dir, "SELECT * FROM jobs ORDER BY created_at DESC LIMIT 1")
        assert newest["seq"] == len(rows(gateway.data_dir, "SELECT 1 FROM jobs"))
