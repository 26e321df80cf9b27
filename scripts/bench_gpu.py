"""Measure the full-size model, of random weights built on the card, beside plain diffusers.

What a step costs depends on shapes alone. Each picture has a prompt and references of its own. The
floor is what the products of a step would take at the rate that this card reaches in one large
product, measured in the same run. `--model tiny --device cpu` shows in a minute that all runs.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_models import SCALES
from bench_report import describe_machine, describe_versions, publish
from bench_rig import Case, Rig, Run

from pipelines.flux2 import Flux2
from pipelines.quantisation import Float8Linear
from pipelines.types import Acceleration, Precision
from server.telemetry import configure_logging

TEXT_TOKENS = 512
LEVELS = ("none", "regular", "high", "flash")
FLASH_STEPS = 8


@dataclass(frozen=True, slots=True)
class Rates:
    """What the card reaches in one large product, in TFLOP/s."""

    plain: float
    eight_bit: float


def main() -> int:
    """Measure, print, and append to the report."""
    options = parse_options()
    configure_logging("warning")
    load_before = os.getloadavg()[0]
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rates = Rates(measure_rate(device, dtype), measure_rate(device, dtype, eight_bit=True))
    with tempfile.TemporaryDirectory(prefix="bench-gpu-", dir=options.folder) as folder:
        started = time.perf_counter()
        rig = Rig(options.model, device, dtype, Path(folder))
        built = time.perf_counter() - started
        compiled = rig.make_pipeline(compiled=True) if options.compile else rig.ours
        started = time.perf_counter()
        compiled.warm_up()
        warm = time.perf_counter() - started
        rows = list(Bench(rig, compiled, rates, options).measure_all())
    about = (
        f"{options.model} model on {describe_device(device)}, torch {torch.__version__}; built in "
        f"{built:.0f} s, compiled and warm in {warm:.0f} s. One large product: {rates.plain:.0f} "
        f"TFLOP/s in {dtype}, {rates.eight_bit:.0f} in fp8. {describe_machine(load_before)}. "
        f"{describe_versions()}."
    )
    publish("gpu", about, write_table(rows), to_file=options.append)
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description=__doc__)
    parser.add_argument("--model", choices=SCALES, default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["1024x768", "1024x1024", "2048x2048"])
    parser.add_argument("--references", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=2, help="pictures of each kind")
    parser.add_argument("--seconds", type=float, default=480, help="begin no picture after this")
    parser.add_argument("--folder", help="for the LoRA's 2.8 GB: memory-backed is best")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="ours alone")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--no-append", dest="append", action="store_false", help="print only")
    return parser.parse_args()


@dataclass(slots=True)
class Bench:
    """One run of the benchmark; pictures are numbered so that no two are the same."""

    rig: Rig
    compiled: Flux2
    rates: Rates
    options: argparse.Namespace
    pictures: int = 0

    def measure_all(self) -> Iterator[list[str]]:
        """Yield a row for each size, number of references and level, the cheap ones first."""
        options = self.options
        ends = time.perf_counter() + options.seconds
        for references, size in itertools.product(options.references, options.sizes):
            width, height = map(int, size.split("x"))
            case = Case(width=width, height=height, steps=options.steps, references=references)
            plain = None
            if options.plain and time.perf_counter() < ends:
                plain = median_of("seconds", self.repeat(self.rig.run_plain, case))
                yield [*place(case), "diffusers", "", f"{plain:.2f}", *[""] * 6, "1.00x"]
            for level in options.levels:
                if time.perf_counter() >= ends:
                    return
                yield self.measure_level(level_case(case, level), level, plain)

    def measure_level(self, case: Case, level: str, plain: float | None) -> list[str]:
        """Measure one level, beside what plain diffusers took; returns its row."""
        device = self.rig.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        runs = self.repeat(lambda *what: self.rig.run_ours(*what, self.compiled), case)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        beside = peak - before if peak else 0
        told = self.compiled.describe(case.settings)
        computed = int(told["computed_steps"])
        seconds, denoise = median_of("seconds", runs), median_of("denoise_seconds", runs)
        linear, attention = count_flops(self.rig.pipe.transformer, case)
        eight_bit = told["precision"] in (Precision.FP8, Precision.INT8)
        rate = self.rates.eight_bit if eight_bit else self.rates.plain
        floor = computed * (linear / rate + attention / self.rates.plain) / 1e12
        return [
            *place(case),
            f"{level} ({told['precision']}, {told['attention']}, {computed} of {case.steps})",
            f"{denoise / computed:.4f}",
            f"{seconds:.2f}",
            f"{median_of('encode_seconds', runs):.3f}",
            f"{median_of('decode_seconds', runs):.3f}",
            f"{peak / 1e9:.1f}",
            f"{beside / 1e9:.1f} ({self.rig.planned_bytes(case) / 1e9:.1f})",
            f"{computed * (linear + attention) / denoise / 1e12:.1f}",
            f"{floor / denoise:.0%}",
            f"{plain / seconds:.2f}x" if plain and not case.flash else "",
        ]

    def repeat(self, run: Callable[[Case, int], Run], case: Case) -> list[Run]:
        """Make several pictures of a kind."""
        first, self.pictures = self.pictures, self.pictures + self.options.repeats
        return [run(case, number) for number in range(first, self.pictures)]


def median_of(name: str, runs: list[Run]) -> float:
    """Return the median of one of the times."""
    return statistics.median(getattr(run, name) for run in runs)


def level_case(case: Case, level: str) -> Case:
    """Make the kind of picture that a level stands for."""
    if level == "flash":
        return replace(case, level=Acceleration.REGULAR, steps=FLASH_STEPS, flash=True)
    return replace(case, level=Acceleration(level))


def place(case: Case) -> list[str]:
    """Begin a row."""
    return [f"{case.width}x{case.height}", str(case.references)]


def count_flops(transformer: Any, case: Case) -> tuple[float, float]:
    """Count operations of one step: in the blocks' linear layers, and in attention."""
    side = min(1024, case.width) // 16
    image = case.width * case.height // 256 + case.references * side * side
    tokens = image + TEXT_TOKENS
    double, single = transformer.transformer_blocks, transformer.single_transformer_blocks
    per_double, per_single = (
        sum(parameter.numel() for parameter in blocks[0].parameters())
        for blocks in (double, single)
    )
    # A double block has one half of its weights for the picture, the other for the text.
    linear = 2 * tokens * (len(double) * per_double / 2 + len(single) * per_single)
    width = transformer.x_embedder.weight.shape[0]
    return linear, 4.0 * tokens**2 * width * (len(double) + len(single))


def measure_rate(device: torch.device, dtype: torch.dtype, *, eight_bit: bool = False) -> float:
    """Measure one large product, in TFLOP/s: what the hardware gives at best."""
    side = 8192 if device.type == "cuda" else 512
    layer = torch.nn.Linear(side, side, bias=False, device=device, dtype=dtype)
    layer.requires_grad_(requires_grad=False)
    product = Float8Linear(layer) if eight_bit else layer
    x = torch.randn(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(10):
        synchronise(device)
        started = time.perf_counter()
        product(x)
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times) / 1e12


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_device(device: torch.device) -> str:
    """Name the card, and how much memory it has."""
    if device.type != "cuda":
        return "the CPU, which is a dry run and no figure"
    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return f"one {name} ({total / 1e9:.0f} GB, {free / 1e9:.0f} free before)"


def write_table(rows: list[list[str]]) -> list[str]:
    """Write all rows."""
    head = (
        "size",
        "references",
        "level",
        "s/step",
        "s/image",
        "encode s",
        "decode s",
        "peak GB",
        "beside weights (planned)",
        "TFLOP/s",
        "of the floor",
        "diffusers / ours",
    )
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
