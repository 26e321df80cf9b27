"""Measure the gateway's memory while edit requests with four reference images each pass through.

The pipeline is an instant one, so that nothing but the way of the images is measured. Every other
request has its images in data URIs, the others have URLs of an image server on this machine.
"""

import argparse
import base64
import io
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench_cores import children_of, choose_cores
from bench_load import build_request
from bench_report import Row, append, describe_machine, describe_versions, heading, table
from bench_server import Served, serve, working_folder
from PIL import Image

EDIT_APP, SUBMIT_PATH = "fal-ai/flux-2", "/queue/fal-ai/flux-2/flash/edit"
FAULTS = Path(__file__).parent.parent / "tests" / "faults"
REFERENCES, PICTURES, CLIENTS = 4, 8, 4
MOST_REST_MIB, MOST_SLOPE_MIB = 300, 1.0
SAMPLES, WARM_UP = 50, 0.2
REST_SECONDS = 3
MIB = 1024 * 1024


@dataclass
class Memory:
    """Resident memory in MiB: before, all along (requests done, MiB), and afterwards."""

    at_rest: float
    along: list[tuple[int, float]] = field(default_factory=list)
    afterwards: float = 0.0
    children: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def slope(self) -> float:
        """MiB for 100 requests: the line through all samples but those of the warming up."""
        first = self.along[-1][0] * WARM_UP
        steady = [sample for sample in self.along if sample[0] >= first]
        requests, sizes = zip(*steady, strict=True)
        return 100 * statistics.linear_regression(requests, sizes).slope


def main() -> int:
    """Measure, print, and append to the report."""
    options = parse_options()
    load_before = os.getloadavg()[0]
    with working_folder(options.data) as folder:
        pictures = make_pictures(folder / "pictures", options.side)
        with image_server(folder / "pictures") as url:
            submits = [
                build_request("POST", SUBMIT_PATH, body)
                for body in make_bodies(pictures, None if options.no_urls else url)
            ]
            memory = measure(folder, submits, options.requests)
    text = "\n".join(write_section(memory, options, pictures, load_before))
    print(text)
    if options.append:
        append(text)
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench inputs", description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--side", type=int, default=2000, help="of each picture, in pixels")
    parser.add_argument("--no-urls", action="store_true", help="data URIs only")
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder on a real disk")
    parser.add_argument("--no-append", dest="append", action="store_false", help="only print")
    return parser.parse_args()


def make_pictures(folder: Path, side: int) -> list[bytes]:
    """Write some JPEGs that are as hard to compress as photographs; return them."""
    folder.mkdir()
    draw = random.Random(5)  # noqa: S311
    pictures = []
    for number in range(PICTURES):
        # Noise of a quarter of the size, enlarged: 0.3 to 0.4 bytes a pixel.
        small = Image.frombytes(
            "RGB", (side // 4, side // 4), draw.randbytes(side // 4 * (side // 4) * 3)
        )
        buffer = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
        (folder / f"{number}.jpg").write_bytes(buffer.getvalue())
    return pictures


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def image_server(folder: Path) -> Iterator[str]:
    """Serve the pictures over HTTP; give the URL of the folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def make_bodies(pictures: list[bytes], url: str | None) -> list[dict[str, Any]]:
    """Return the inputs that are sent in turns."""
    uris = [f"data:image/jpeg;base64,{base64.b64encode(one).decode()}" for one in pictures]
    bodies = [{"image_urls": uris[:REFERENCES]}]
    if url:
        bodies.append({"image_urls": [f"{url}/{number}.jpg" for number in range(REFERENCES)]})
        bodies.append({"image_urls": uris[-REFERENCES:]})
        bodies.append({"image_urls": [f"{url}/{PICTURES - 1 - n}.jpg" for n in range(REFERENCES)]})
    else:
        bodies.append({"image_urls": uris[-REFERENCES:]})
    return [{"prompt": "plain", "image_size": "square", "seed": 5, **body} for body in bodies]


def measure(folder: Path, submits: list[bytes], requests: int) -> Memory:
    """Pass the requests through a server of its own and watch the gateway meanwhile."""
    settings = {
        "FLUX2_PIPELINE_FACTORY": "fault_pipelines:instant",
        "FLUX2_FETCH_ALLOW": "127.0.0.1",
        "FLUX2_RESULT_SECONDS": "5",
        "FLUX2_SWEEP_SECONDS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH")])),
    }
    cores = choose_cores()
    with serve(folder, folder / "box", cores, held=False, environment=settings) as server:
        time.sleep(REST_SECONDS)
        memory = Memory(resident_mib(server.process.pid))
        started = time.perf_counter()
        every = max(1, requests // SAMPLES)
        with ThreadPoolExecutor(CLIENTS) as clients:
            works = [
                clients.submit(send, server, submits[number % len(submits)])
                for number in range(requests)
            ]
            for number, work in enumerate(works, start=1):
                work.result()
                if number % every == 0:
                    memory.along.append((number, resident_mib(server.process.pid)))
        memory.seconds = time.perf_counter() - started
        time.sleep(REST_SECONDS)
        memory.afterwards = resident_mib(server.process.pid)
        memory.children = {
            name: resident_mib(pid) for name, pid in children_of(server.process.pid).items()
        }
    return memory


def send(server: Served, submit: bytes) -> None:
    """Submit a request, wait for its end, and see to it that it succeeded."""
    line = server.new_line()
    request_id = line.exchange(submit)["request_id"]
    line.close()
    kept = f"/queue/{EDIT_APP}/requests/{request_id}"
    line = server.new_line()
    line.follow(f"{kept}/status")
    line.close()
    line = server.new_line()
    line.ask("GET", kept)
    line.close()


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process, shared pages included."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (kib,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(kib) / 1024


def write_section(
    memory: Memory, options: argparse.Namespace, pictures: list[bytes], load_before: float
) -> list[str]:
    """Return the section, in Markdown."""
    size = statistics.mean(map(len, pictures)) / MIB
    kinds = "data URIs" if options.no_urls else "data URIs and URLs in turns"
    most = max(mib for _, mib in memory.along)
    rest = max(memory.at_rest, memory.afterwards)
    rows: list[Row] = [
        (
            "gateway at rest, before and after",
            f"{memory.at_rest:.0f} and {memory.afterwards:.0f} MiB",
            f"< {MOST_REST_MIB} MiB",
            rest < MOST_REST_MIB,
        ),
        (
            "gateway, growth for 100 requests",
            f"{memory.slope:+.2f} MiB",
            f"< {MOST_SLOPE_MIB:g} MiB",
            memory.slope < MOST_SLOPE_MIB,
        ),
        ("gateway, most at a time", f"{most:.0f} MiB", "", None),
        *(
            (f"`{name}` at the end", f"{mib:.0f} MiB", "", None)
            for name, mib in memory.children.items()
        ),
        ("requests", f"{options.requests / memory.seconds:.1f}/s", "", None),
    ]
    what = (
        f"{options.requests} requests from {CLIENTS} clients with {REFERENCES} JPEGs of "
        f"{options.side}x{options.side} pixels ({size:.1f} MiB) each, {kinds}, through an instant "
        f"pipeline. {describe_machine(load_before)}. {describe_versions()}."
    )
    return [*heading("inputs"), what, "", *table(rows), ""]


if __name__ == "__main__":
    sys.exit(main())
