"""Measure what a client feels while others hold connections and send next to nothing.

The client submits, asks for the status until it is completed, and fetches the result, again and
again, on the tiny checkpoint; the crowd is a process of its own. In the end many status streams
are open at once, and the gateway's memory is compared.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from bench_cores import choose_cores
from bench_load import percentile
from bench_report import append, heading
from bench_server import COMMAND, SUBMIT_PATH, Served, serve, status_path

JOB: dict[str, Any] = {"prompt": "A", "image_size": "square", "num_inference_steps": 4, "seed": 1}
LONG_JOB: dict[str, Any] = {**JOB, "num_images": 4, "num_inference_steps": 50}
MOST_SECONDS = 1.0
MOST_MIB = 60.0
POLL_SECONDS = 0.02
MOST_CONNECTIONS = 10_000


def main() -> int:
    """Measure, print, and append to the report; 1 when a target is missed."""
    options = parse_options()
    # All of the crowd is one address here, and the client is of the same.
    os.environ["FLUX2_CONNECTIONS_PER_ADDRESS"] = str(MOST_CONNECTIONS)
    folder = Path(tempfile.mkdtemp(prefix="bench-edge-"))
    try:
        model = options.model or make_model(folder / "model")
        with serve(model, folder / "data", choose_cores(), held=False) as served:
            alone = measure_calls(served, options.seconds)
            with crowd(served, options.idle, options.dripping) as closed:
                beside = measure_calls(served, options.seconds)
            growth, submits = measure_streams(served, options.streams, options.seconds)
    finally:
        shutil.rmtree(folder)
    held = percentile(beside, 99) < MOST_SECONDS and growth < MOST_MIB
    text = write_section(options, (alone, beside, submits), closed[-1], growth)
    print(text)
    if options.append:
        append(text)
    return 0 if held else 1


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench edge", description=__doc__)
    parser.add_argument("--idle", type=int, default=500, help="connections that send nothing")
    parser.add_argument("--dripping", type=int, default=200, help="those of one byte a second")
    parser.add_argument("--streams", type=int, default=1000, help="status streams at once")
    parser.add_argument("--seconds", type=float, default=30, help="how long to measure, twice")
    parser.add_argument("--model", type=Path, help="a checkpoint; made when not given")
    parser.add_argument("--no-append", dest="append", action="store_false")
    return parser.parse_args()


def make_model(folder: Path) -> Path:
    """Make the tiny checkpoint."""
    subprocess.run([COMMAND, "demo-model", str(folder)], check=True)  # noqa: S603
    return folder


@contextmanager
def crowd(
    served: Served, idle: int, dripping: int, streams: int = 0, path: str = "/"
) -> Iterator[list[str]]:
    """Keep a crowd up; afterwards the list holds its last words."""
    words: list[str] = []
    script = str(Path(__file__).with_name("bench_crowd.py"))
    counts = [str(count) for count in (*served.address, idle, dripping, streams)]
    with subprocess.Popen(  # noqa: S603
        [sys.executable, script, *counts, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the process was not started with pipes")
        if process.stdout.readline() != "ready\n":
            raise SystemExit("the crowd did not come together")
        try:
            yield words
        finally:
            process.stdin.close()
            words.append(process.stdout.readline().strip())


def measure_calls(served: Served, seconds: float) -> list[float]:
    """Work as a client does for so long; return the seconds of every single call."""
    host, port = served.address
    taken: list[float] = []

    def timed(http: httpx2.Client, method: str, path: str, body: Any = None) -> Any:
        began = time.perf_counter()
        answer = http.request(method, path, json=body)
        taken.append(time.perf_counter() - began)
        answer.raise_for_status()
        return answer.json()

    end = time.monotonic() + seconds
    with httpx2.Client(base_url=f"http://{host}:{port}", trust_env=False, timeout=60) as http:
        while time.monotonic() < end:
            request_id = timed(http, "POST", SUBMIT_PATH, JOB)["request_id"]
            path = status_path(request_id)
            while timed(http, "GET", path)["status"] != "COMPLETED":
                time.sleep(POLL_SECONDS)
            timed(http, "GET", path.removesuffix("/status"))
    return taken


def measure_streams(served: Served, streams: int, seconds: float) -> tuple[float, list[float]]:
    """Open so many status streams of one running request, and submit others meanwhile.

    Returns the gateway's growth in MiB, and the seconds of each submit.
    """
    host, port = served.address
    taken: list[float] = []
    with httpx2.Client(base_url=f"http://{host}:{port}", trust_env=False, timeout=60) as http:
        request_id = http.post(SUBMIT_PATH, json=LONG_JOB).json()["request_id"]
        before = resident_mib(served.process.pid)
        with crowd(served, 0, 0, streams, f"{status_path(request_id)}/stream"):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.perf_counter()
                queued = http.post(SUBMIT_PATH, json=JOB).json()["request_id"]
                taken.append(time.perf_counter() - began)
                http.put(f"{SUBMIT_PATH}/requests/{queued}/cancel")
            growth = resident_mib(served.process.pid) - before
        http.put(f"{SUBMIT_PATH}/requests/{request_id}/cancel")
    return growth, taken


def resident_mib(pid: int) -> float:
    """Return how much memory a process has, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def write_section(
    options: argparse.Namespace,
    samples: tuple[list[float], list[float], list[float]],
    closed: str,
    growth: float,
) -> str:
    """Write the report's section; the samples are calls alone, beside the crowd, and submits."""
    alone, beside, submits = samples

    def row(name: str, taken: list[float]) -> str:
        median, high = (f"{percentile(taken, part) * 1000:.1f}" for part in (50, 99))
        return f"| {name} | {len(taken)} | {median} | {high} | {max(taken) * 1000:.1f} |"

    crowded = f"{options.idle} idle and {options.dripping} dripping connections"
    words = f"The crowd's connections were {closed} times by the server, and opened again."
    streams = f"{options.streams} status streams at once: the gateway grew by {growth:.1f} MiB"
    return "\n".join(
        (
            *heading("edge"),
            "| a client's calls | count | median ms | p99 ms | longest ms |",
            "|---|---|---|---|---|",
            row("alone", alone),
            row(f"beside {crowded}", beside),
            row(f"submits beside {options.streams} status streams", submits),
            "",
            f"Target: p99 below {MOST_SECONDS * 1000:.0f} ms. {words}",
            f"{streams} (target: below {MOST_MIB:.0f}).",
            "",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
