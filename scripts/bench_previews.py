"""Measure what the previews of a stream cost: the same picture with and without, in turns.

Painting and encoding are both in the drawing's own thread here, which is more than a server pays:
there encoding has a thread of its own. So has the safety check, which is told apart.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from bench_models import SCALES, build_checker, count_parameters
from bench_report import Row, describe_machine, describe_versions, publish, table
from bench_rig import Case, Rig, Run, run_pairs

from pipelines.safety import load_checker
from pipelines.types import Step
from server.images import encode
from server.schemas import OutputFormat
from server.telemetry import configure_logging

MOST_SHARE = 0.03
LATEST_FIRST_STEP = 3


def main() -> int:
    """Measure, print, and append to the report; 1 when a target is missed."""
    options = parse_options()
    configure_logging("warning")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-previews-") as folder:
        rig = Rig(options.model, torch.device("cpu"), torch.float32, Path(folder))
        rows = [*measure(rig, options), measure_check(rig, Path(folder) / "checker")]
    parameters = count_parameters(rig.pipe.transformer) / 1e6
    about = (
        f"{options.model}: transformer of {parameters:.1f} M parameters, 512x512, {options.steps} "
        f"steps, float32, medians of {options.pairs} pairs. {describe_machine(load_before)}. "
        f"{describe_versions()}."
    )
    publish("previews", about, table(rows), to_file=options.append)
    return 1 if any(held is False for *_, held in rows) else 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench previews", description=__doc__)
    parser.add_argument("--model", choices=SCALES[:2], default="mid", help="how large a model")
    parser.add_argument("--pairs", type=int, default=5, help="of runs, without and with previews")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--no-append", dest="append", action="store_false", help="print only")
    return parser.parse_args()


def measure(rig: Rig, options: argparse.Namespace) -> list[Row]:
    """Measure pictures without and with previews; the fit to the VAE, once a start, apart."""
    steps: list[int] = []

    def on_step(step: Step) -> None:
        if step.preview:
            encode(step.preview, OutputFormat.JPEG)
            steps.append(step.step)

    plain, watched = Case(steps=options.steps), Case(steps=options.steps, previews=True)
    rig.run_ours(Case(steps=1), -1)  # threads and libraries are started before anything counts
    started = time.perf_counter()
    rig.ours.fit_colours()
    fit_seconds = time.perf_counter() - started
    rig.run_ours(watched, -1)
    alone, with_previews = run_pairs(
        options.pairs,
        partial(rig.run_ours, plain),
        lambda number: rig.run_ours(watched, 100 + number, on_step=on_step),
    )
    count = len(steps) / options.pairs
    return [
        share_row("wall time", [run.seconds for run in alone], [r.seconds for r in with_previews]),
        share_row("CPU time", _cpu_seconds(alone), _cpu_seconds(with_previews)),
        ("previews of a picture", f"{count:g}", "", None),
        (
            "the first, with step",
            f"{min(steps)}",
            f"≤ {LATEST_FIRST_STEP}",
            min(steps) <= LATEST_FIRST_STEP,
        ),
        ("the fit to the VAE, once a start", f"{fit_seconds:.2f} s", "", None),
    ]


def measure_check(rig: Rig, folder: Path) -> Row:
    """Say what the safety check of one preview takes, with a checker as large as Falconsai's."""
    build_checker(folder)
    checker = load_checker(folder, rig.device)
    picture = rig.run_ours(Case(steps=1), -2).picture.resize((64, 64))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        checker.score(picture)
        seconds.append(time.perf_counter() - started)
    return ("its safety check (ViT-base)", f"{statistics.median(seconds[1:]):.3f} s", "", None)


def share_row(name: str, alone: list[float], watched: list[float]) -> Row:
    """Tell what previews add to the time of a picture."""
    before, after = statistics.median(alone), statistics.median(watched)
    share = after / before - 1
    value = f"{share:+.1%} ({before:.2f} s, then {after:.2f} s)"
    return (f"{name} that previews add", value, f"≤ {MOST_SHARE:.0%}", share <= MOST_SHARE)


def _cpu_seconds(runs: list[Run]) -> list[float]:
    return [run.cpu_seconds for run in runs]


if __name__ == "__main__":
    sys.exit(main())
