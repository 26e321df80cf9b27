"""One job's life, killed at its n-th call to database and disk, for every n there is.

    python -m tests.faults.stepwise [EVERY]

Two lives are walked: from an empty folder through submit, run, result and stop; and from that
folder, long after, through the expiry. After each kill a clean server starts on what is left,
and what its callers were told must hold. The servers are forks of this process, which has
imported everything already: a start takes a tenth of a second.
"""

import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2

from server.cli import main as serve
from tests.faults.counted_calls import CountedCalls
from tests.faults.gateway import ENDPOINT, FAULTS, ROOT, free_port
from tests.faults.rows import files_on_disk, files_on_record, rows

STEP_SECONDS = 60
PAUSE_SECONDS = 0.003
NEVER = 1_000_000
LATER_SECONDS = 30 * 24 * 3600
WORKERS = 2
INPUT = {"prompt": "plain", "image_size": "square", "num_images": 2, "seed": 5}


@dataclass
class Seen:
    """What the caller was told before the kill, None for nothing."""

    request_id: str | None = None
    result: bytes | None = None
    finished: bool = False


class Violation(Exception):  # noqa: N818  (it is one)
    """A promise that was not kept."""


class Server:
    """A fork of this process that serves a folder."""

    def __init__(self, data_dir: Path, port: int, kill_at: int = NEVER, later: float = 0) -> None:
        self._log = data_dir.parent / "log"
        self._point = data_dir.parent / "point"
        self._point.unlink(missing_ok=True)
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._be_server(data_dir, port, kill_at, later)
            finally:
                os._exit(99)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if not self.is_gone():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def is_gone(self) -> bool:
        """Say whether the process has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def end(self, number: int) -> str:
        """Send the signal if it still runs, and return the call at which it was killed, if so."""
        if not self.is_gone():
            os.kill(self.pid, number)
            wait_for(self.is_gone)
        point = self._point.read_text()
        require(point or self._status == 0, f"it ended with {self._status}")
        return point

    def _be_server(self, data_dir: Path, port: int, kill_at: int, later: float) -> None:
        log = os.open(self._log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {
            "FLUX2_PIPELINE_FACTORY": "fault_pipelines:instant",
            "FLUX2_MODEL": str(data_dir.parent),
            "FLUX2_DATA_DIR": str(data_dir),
            "FLUX2_DISK_RESERVE_BYTES": "0",
            "FLUX2_SAFETY": "off",
            "FLUX2_SWEEP_SECONDS": "1000",  # one sweep at each start, so that calls can be counted
            "PYTHONPATH": f"{FAULTS}{os.pathsep}{ROOT}",
        }
        if later:
            real = time.time
            time.time = lambda: real() + later
        point = os.open(self._point, os.O_CREAT | os.O_WRONLY)
        CountedCalls(data_dir, kill_at, lambda name: _write(point, name)).install()
        sys.argv = ["flux2-serve", "serve", "--port", str(port), "--tls-port", "none"]
        try:
            serve()
        except SystemExit as end:
            os._exit(int(end.code or 0))


def caller(port: int) -> httpx2.Client:
    """Make a caller of the server on this port."""
    return httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)


def _write(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode())


def wait_for(condition: Callable[[], object]) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + STEP_SECONDS
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise Violation("it does not go on")
        pause.wait(PAUSE_SECONDS)


def require(holds: object, violation: str) -> None:
    """Raise the violation unless it holds."""
    if not holds:
        raise Violation(violation)


def wait_listening(server: Server, http: httpx2.Client) -> bool:
    """Wait until the server answers; False when it is gone before."""

    def answers() -> bool:
        if server.is_gone():
            return True
        with contextlib.suppress(httpx2.TransportError):
            return http.get("/health/live").status_code == 200
        return False

    wait_for(answers)
    return not server.is_gone()


def wait_completed(http: httpx2.Client, path: str) -> None:
    """Wait until the request is COMPLETED."""
    wait_for(lambda: http.get(f"{path}/status").json()["status"] == "COMPLETED")


def live(server: Server, http: httpx2.Client, seen: Seen) -> None:
    """Submit, wait, and read the result and its files, for as long as the server is there."""
    with contextlib.suppress(httpx2.TransportError):
        if not wait_listening(server, http):
            return
        answer = http.post(f"/queue/{ENDPOINT}", json=INPUT)
        require(answer.status_code == 200, f"not accepted: {answer.text}")
        seen.request_id = answer.json()["request_id"]
        path = f"/queue/{ENDPOINT}/requests/{seen.request_id}"
        wait_completed(http, path)
        seen.result = read_result(http, path)
        seen.finished = True


def read_result(http: httpx2.Client, path: str) -> bytes:
    """Read a result twice, and its files; return its body."""
    first, second = http.get(path), http.get(path)
    require(first.status_code == 200, f"the result answers {first.status_code}: {first.text}")
    require(first.content == second.content, "two results")
    images = first.json()["images"]
    require(len(images) == INPUT["num_images"], f"{len(images)} images")
    for image in images:
        file = http.get(httpx2.URL(image["url"]).path)
        require(file.status_code == 200, f"a file answers {file.status_code}")
        require(len(file.content) == image["file_size"], "a file is cut")
    return first.content


def check_left(data_dir: Path) -> None:
    """Between kill and restart: whatever a row names is on the disk, whole."""
    known: dict[str, int] = {}
    with contextlib.suppress(sqlite3.Error):  # killed before there was any table
        known = files_on_record(data_dir)
    there = files_on_disk(data_dir)
    require(known.items() <= there.items(), "a row without its file")


def check_restarted(data_dir: Path, http: httpx2.Client, seen: Seen) -> None:
    """P1 to P3, asked of a clean server after the kill."""
    found = rows(data_dir, "SELECT request_id FROM jobs")
    ids = [row["request_id"] for row in found]
    if seen.request_id is None:
        require(len(ids) <= 1, f"{len(ids)} jobs of one request")
    else:
        require(ids == [seen.request_id], f"accepted {seen.request_id}, there is {ids}")
    for request_id in ids:
        path = f"/queue/{ENDPOINT}/requests/{request_id}"
        wait_completed(http, path)
        result = read_result(http, path)
        require(seen.result in (None, result), "another result than before the kill")
    charges = rows(data_dir, "SELECT attempts, runner_deaths FROM jobs")
    require(
        all(row == {"attempts": 1, "runner_deaths": 0} for row in charges), f"charged {charges}"
    )


def check_end(data_dir: Path) -> None:
    """After everything: no file without a row, none the other way, nothing in the spool."""
    known, there = files_on_record(data_dir), files_on_disk(data_dir)
    require(known == there, f"files and rows differ: {known.keys() ^ there.keys()}")
    require(not list(data_dir.glob("spool/*")), "the spool was left")


def step_life(folder: Path, port: int, kill_at: int) -> str:
    """Live one job with a kill; return at which call it came, if it came."""
    data_dir, seen = folder / "data", Seen()
    shutil.rmtree(data_dir, ignore_errors=True)
    with Server(data_dir, port, kill_at) as server, caller(port) as http:
        live(server, http, seen)
        point = server.end(signal.SIGTERM)
        require(point or seen.finished, "it ended by itself")
    check_left(data_dir)
    with Server(data_dir, port) as successor, caller(port) as http:
        require(wait_listening(successor, http), "it does not start again")
        check_restarted(data_dir, http, seen)
        successor.end(signal.SIGTERM)
    check_end(data_dir)
    return point


def step_expiry(folder: Path, port: int, kill_at: int) -> str:
    """Start on a folder with a result that is past its time, with a kill; then once more."""
    data_dir = folder / "data"
    shutil.rmtree(data_dir, ignore_errors=True)
    shutil.copytree(folder / "template", data_dir)
    with Server(data_dir, port, kill_at, LATER_SECONDS) as server:
        wait_for(lambda: server.is_gone() or not files_on_disk(data_dir))
        point = server.end(signal.SIGTERM)
    check_left(data_dir)
    with Server(data_dir, port, later=LATER_SECONDS) as successor, caller(port) as http:
        require(wait_listening(successor, http), "it does not start again")
        wait_for(lambda: not files_on_disk(data_dir))
        successor.end(signal.SIGTERM)
    require(rows(data_dir, "SELECT 1 FROM jobs") == [], "an expired request is still there")
    check_end(data_dir)
    return point


def walk_part(folder: Path, first: int, every: int, name: str) -> int:
    """Walk every so-manieth kill point of one life; return the number of violations."""
    step: Callable[[Path, int, int], str] = step_life if name == "life" else step_expiry
    port, wrong, point, kill_at = free_port(), 0, "its start", first
    while point:
        (folder / "log").unlink(missing_ok=True)
        try:
            point = step(folder, port, kill_at)
        except Exception as error:  # noqa: BLE001  (every trouble is a finding, and the walk goes on)
            wrong += 1
            log = (folder / "log").read_text(errors="replace")[-3000:]
            print(f"VIOLATION {name} {kill_at}: {error!r}\n{log}", flush=True)  # noqa: T201
            if wrong > 5:
                return wrong
        else:
            print(f"{name} {kill_at}: {point or 'nothing left to kill'}", flush=True)  # noqa: T201
        kill_at += every
    return wrong


def make_template(folder: Path) -> None:
    """Leave the folder of a server that has finished one job and stopped."""
    step_life(folder, free_port(), NEVER)
    (folder / "data").rename(folder / "template")


def walk(every: int) -> int:
    """Walk both lives with some workers at once; return an exit status."""
    started, workers = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="stepwise-") as base:
        template = Path(base) / "first"
        template.mkdir()
        make_template(template)
        for number in range(WORKERS):
            folder = Path(base) / str(number)
            folder.mkdir()
            shutil.copytree(template / "template", folder / "template")
            pid = os.fork()
            if pid == 0:
                first, stride = 1 + number * every, WORKERS * every
                wrong = walk_part(folder, first, stride, "life")
                wrong += walk_part(folder, first, stride, "expiry")
                os._exit(min(wrong, 100))
            workers.append(pid)
        violations = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers)
    seconds = time.monotonic() - started
    print(f"{violations} violations, {seconds:.0f} s")  # noqa: T201
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(walk(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
