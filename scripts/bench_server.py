"""The server that is measured, the queue that it begins with, and the pipeline without it."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench_cores import children_of, move, on_core
from bench_load import Line

from server.jobs import Job
from server.keys import HOUSE
from server.store import Store
from server.store.database import load_queries
from server.store.rows import row_of

COMMAND = str(Path(sys.executable).parent / "flux2-serve")
START_SECONDS = 120
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

APP = "fal-ai/flux-2"
SUBMIT_PATH = f"/queue/{APP}"


@dataclass
class Served:
    """A running server, its processes on their cores."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    line: Line

    def new_line(self) -> Line:
        """Return a further connection."""
        return Line(self.address)

    def metric(self, name: str) -> float:
        """Return one value of `/metrics` that has no labels."""
        host, port = self.address
        with urllib.request.urlopen(f"http://{host}:{port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        (value,) = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
        return float(value)


@contextmanager
def working_folder(parent: Path) -> Iterator[Path]:
    """Make a folder that is gone at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def status_path(request_id: str) -> str:
    """Return where the status of a request is."""
    return f"{SUBMIT_PATH}/requests/{request_id}/status"


@contextmanager
def serve(
    model: Path,
    data_dir: Path,
    cores: tuple[int, int],
    *,
    held: bool,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Start a server on (gateway core, runner core), wait until its runner is loaded, stop it.

    All that the gateway starts is on the runner's core. `environment` is added to the server's.
    """
    settings = {
        "FLUX2_MODEL": str(model),
        "FLUX2_DATA_DIR": str(data_dir),
        "FLUX2_SAFETY": "off",
        "FLUX2_PORT": "0",
        "FLUX2_TLS_PORT": "none",
        "FLUX2_QUEUE_LIMIT": str(10**9),
        "FLUX2_START_MODE": "hold" if held else "resume",
        "FLUX2_DRAIN_SECONDS": "0",
    }
    log = data_dir.with_suffix(".log")
    with on_core(cores[0]), log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(  # noqa: S603
            [COMMAND, "serve"],
            env={**os.environ, **ONE_THREAD, **settings, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        address = _read_address(process, log)
        line = Line(address)
        for child in _wait_loaded(process, log):
            move(child, cores[1])
        yield Served(process, address, line)
        line.close()
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _read_address(process: subprocess.Popen[str], log: Path) -> tuple[str, int]:
    for text in process.stdout or ():
        if text.startswith("listening on "):
            url = urlsplit(text.split()[-1])
            return str(url.hostname), int(url.port or 0)
    raise SystemExit(f"the server did not start:\n{log.read_text(encoding='utf-8')}")


def _wait_loaded(process: subprocess.Popen[str], log: Path) -> Iterable[int]:
    """Return the gateway's children, once the log says that the runner is ready.

    A held server never says of itself that it is.
    """
    deadline = time.monotonic() + START_SECONDS
    while "runner ready" not in log.read_text(encoding="utf-8"):
        if time.monotonic() > deadline or process.poll() is not None:
            raise SystemExit(f"no runner:\n{log.read_text(encoding='utf-8')}")
        time.sleep(0.1)
    return children_of(process.pid).values()


def fill(data_dir: Path, count: int, body: dict[str, Any]) -> list[str]:
    """Put so many requests into a queue that no server works on; return their ids, in order."""
    queries = load_queries("queries.sql")
    now = time.time()
    ids = [str(uuid.uuid4()) for _ in range(count)]
    rows = [
        row_of(
            Job(
                request_id=request_id,
                endpoint_id=APP,
                owner=HOUSE,
                origin="http://bench",
                input=json.dumps(body),
                created_at=now,
            )
        )
        for request_id in ids
    ]

    def insert(connection: sqlite3.Connection) -> None:
        for name in ("insert_job", "insert_input"):
            connection.executemany(queries[name], rows)

    async def write() -> None:
        store = Store(data_dir)
        await store.open()
        await store.write(insert)
        await store.close()

    asyncio.run(write())
    return ids


@contextmanager
def bare_pipeline(model: Path, body: dict[str, Any], core: int) -> Iterator["Bare"]:
    """Load the pipeline in a process of its own on this core, with nothing around it."""
    with on_core(core):
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(Path(__file__).with_name("bench_bare.py")), str(model)],
            env={**os.environ, **ONE_THREAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    with process:
        yield Bare(process, body)
        if process.stdin:
            process.stdin.close()


class Bare:
    """The pipeline alone: the same request, without queue, protocol and files."""

    def __init__(self, process: subprocess.Popen[str], body: dict[str, Any]) -> None:
        self._process = process
        self._body = body

    def measure(self) -> float:
        """Make and encode the image once; return the seconds that took."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the process was not started with pipes")
        self._process.stdin.write(json.dumps(self._body) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())
