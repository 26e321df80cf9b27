"""Measure how long the device idles between two requests of a queue that is never empty.

The pipeline draws by waiting for a known time and gives large PNGs, whose encoding takes a good
part of that; it notes when each drawing began and ended.
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench_cores import choose_cores, on_core
from bench_report import Row, append, describe_machine, describe_versions, heading, ms, table
from bench_server import fill, serve, status_path, working_folder
from bench_waiting import RECORD, SECONDS, make_picture

from server.images import encode
from server.schemas import OutputFormat

MOST_IDLE_SHARE, LEAST_DRAWING_SHARE = 0.05, 0.97
STEPS = 10
ENCODINGS = 5


@dataclass(frozen=True)
class Drawings:
    """When each drawing began and ended, in order, in seconds; and what encoding one takes."""

    moments: list[tuple[float, float]]
    encoding_seconds: float
    encoded_bytes: int

    @property
    def idle(self) -> list[float]:
        """The seconds between the end of a drawing and the beginning of the next."""
        return [after[0] - before[1] for before, after in pairwise(self.moments)]

    @property
    def lengths(self) -> list[float]:
        """The seconds that each drawing took."""
        return [end - began for began, end in self.moments]

    @property
    def share(self) -> float:
        """The part of the time from the first beginning to the last end in which it drew."""
        return sum(self.lengths) / (self.moments[-1][1] - self.moments[0][0])


def main() -> int:
    """Measure, print, and append to the report; 1 when a target is missed."""
    options = parse_options()
    load_before = os.getloadavg()[0]
    with working_folder(options.data) as folder:
        drawings = measure(folder, options)
    rows = result_rows(drawings, options.seconds)
    text = "\n".join(write_section(rows, drawings, options, load_before))
    print(text)
    if options.append:
        append(text)
    return 0 if all(held is not False for *_, held in rows) else 1


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench overlap", description=__doc__)
    parser.add_argument("--requests", type=int, default=30, help="of one image each")
    parser.add_argument("--seconds", type=float, default=1.0, help="that drawing one takes")
    parser.add_argument("--side", type=int, default=2048, help="of each image, in pixels")
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder on a real disk")
    parser.add_argument("--no-append", dest="append", action="store_false", help="only print")
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> Drawings:
    """Let a server of its own work through a queue that is full from the start."""
    cores, record = choose_cores(), folder / "drawings"
    encoding_seconds, encoded_bytes = measure_encoding(options.side, cores[1])
    body = {
        "prompt": "A lighthouse on a cliff at dusk",
        "image_size": {"width": options.side, "height": options.side},
        "num_inference_steps": STEPS,
        "output_format": "png",
        "seed": 5,
    }
    last_id = fill(folder / "box", options.requests, body)[-1]
    environment = {
        "FLUX2_PIPELINE_FACTORY": "bench_waiting:load",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
        ),
        SECONDS: str(options.seconds),
        RECORD: str(record),
    }
    with serve(folder, folder / "box", cores, held=False, environment=environment) as server:
        server.line.follow(status_path(last_id))
    lines = record.read_text(encoding="ascii").splitlines()
    moments = [(float(began), float(end)) for began, end in map(str.split, lines)]
    return Drawings(moments, encoding_seconds, encoded_bytes)


def measure_encoding(side: int, core: int) -> tuple[float, int]:
    """Return how long encoding a picture takes on the runner's core, and how many bytes it has."""
    picture, taken, size = make_picture(side), [], 0
    with on_core(core):
        for _ in range(ENCODINGS):
            started = time.perf_counter()
            size = len(encode(picture, OutputFormat.PNG).data)
            taken.append(time.perf_counter() - started)
    return statistics.median(taken), size


def result_rows(drawings: Drawings, seconds: float) -> list[Row]:
    """Return what has a target, and what explains it."""
    idle, share = statistics.median(drawings.idle), drawings.share
    most = MOST_IDLE_SHARE * drawings.encoding_seconds
    longer = statistics.median(drawings.lengths) - seconds
    return [
        (
            "device idle between two requests, median and longest",
            f"{ms(drawings.idle, 50)} and {ms(drawings.idle, 100)} ms",
            f"median ≤ {most * 1000:.0f} ms, {MOST_IDLE_SHARE:.0%} of the encoding",
            idle <= most,
        ),
        (
            "share of the time in which the device drew",
            f"{share:.1%}",
            f"≥ {LEAST_DRAWING_SHARE:.0%}",
            share >= LEAST_DRAWING_SHARE,
        ),
        (
            "encoding one image, on its own",
            f"{drawings.encoding_seconds:.3f} s",
            "",
            None,
        ),
        ("a drawing took longer than its waits, median", f"{longer * 1000:.1f} ms", "", None),
    ]


def write_section(
    rows: list[Row], drawings: Drawings, options: argparse.Namespace, load_before: float
) -> list[str]:
    """Return the section, in Markdown."""
    what = (
        f"{len(drawings.moments)} requests of one PNG of {options.side}x{options.side} pixels "
        f"({drawings.encoded_bytes / 2**20:.1f} MiB) each, drawn in {options.seconds:g} s. "
        f"{describe_machine(load_before)}. {describe_versions()}."
    )
    return [*heading("overlap"), what, "", *table(rows), ""]


if __name__ == "__main__":
    sys.exit(main())
