"""What was measured, and the section of the report that tells of it."""

import os
import platform
import shlex
import sqlite3
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench_load import Load, load_tool, percentile

REPORT = Path("docs/BENCHMARKS.md")
MOST_RATIO, MOST_GROWTH = 1.05, 1.3
LEAST_POLLS_PER_SECOND, MOST_POLL_MS = 500, 50
PACKAGES = ("flux2-serve", "fastapi", "starlette", "uvicorn", "pydantic", "torch", "diffusers")
OPERATIONS = ("submit", "status", "cancel", "claim")
VERDICTS = {None: "", True: "held", False: "**missed**"}

Row = tuple[str, str, str, bool | None]
"""What, its value, its target, and whether that was held (None: there is none)."""


@dataclass(kw_only=True)
class Figures:
    """All that was measured. Times are seconds where no name says otherwise."""

    submits: Load
    polls: Load
    submitters: int
    pollers: int
    steps_alone: float
    steps_polled: float
    bare: Sequence[float]
    served: Sequence[float]
    sync: Sequence[float]
    costs: "Costs"
    load_before: float


@dataclass
class Costs:
    """Samples of single calls, each beside several backlogs."""

    samples: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def add(self, operation: str, backlog: int, seconds: float) -> None:
        """Note one sample."""
        self.samples.setdefault((operation, backlog), []).append(seconds)

    @property
    def backlogs(self) -> list[int]:
        """The backlogs, shortest first."""
        return sorted({backlog for _, backlog in self.samples})

    def growth(self, operation: str) -> float:
        """Return how many times the median at the longest backlog is that at the shortest."""
        longest, shortest = self.backlogs[-1], self.backlogs[0]
        median = statistics.median(self.samples[operation, longest])
        return median / statistics.median(self.samples[operation, shortest])


def write_report(figures: Figures) -> str:
    """Return the section, in Markdown."""
    machine = (
        f"{describe_machine(figures.load_before)}; a page written and synced in "
        f"{ms(figures.sync, 50)} ms. {describe_versions()}. Load from {load_tool()}."
    )
    lines = [
        *heading("queue"),
        machine,
        "",
        *table(result_rows(figures)),
        "",
        *cost_table(figures.costs),
        "",
    ]
    return "\n".join(lines)


def heading(name: str) -> list[str]:
    """Begin a section with the benchmark's name, the time, and the command."""
    return [
        f"## {name.capitalize()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "",
        f"`{shlex.join(['scripts/bench', name, *sys.argv[1:]])}`",
        "",
    ]


def describe_machine(load_before: float) -> str:
    """Say what it ran on: shapes, no names."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} {platform.machine()} cores"
    return f"{cores}, {memory_gib:.0f} GiB, load average {load_before:.1f} before"


def describe_versions() -> str:
    """Say what ran."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {packages}"


def table(rows: Sequence[Row]) -> list[str]:
    """Return the results and whether their targets were held."""
    return [
        "| measured | result | target | |",
        "|---|---|---|---|",
        *(
            f"| {what} | {value} | {target} | {VERDICTS[held]} |"
            for what, value, target, held in rows
        ),
    ]


def publish(name: str, about: str, lines: Sequence[str], *, to_file: bool) -> None:
    """Print a benchmark's section, and append it to the report if that is wanted."""
    text = "\n".join([*heading(name), about, "", *lines, ""])
    print(text)
    if to_file:
        append(text)


def append(section: str) -> None:
    """Add a section to the report."""
    with REPORT.open("a", encoding="utf-8") as report:
        report.write(f"\n{section}")


def result_rows(figures: Figures) -> list[Row]:
    """Return what has a target, and what explains it."""
    costs, polls = figures.costs, figures.polls
    growth = {name: costs.growth(name) for name in ("claim", "status", "submit")}
    bare, served = statistics.median(figures.bare), statistics.median(figures.served)
    ratio = served / bare
    return [
        (
            f"submits, {figures.submitters} clients, each synced",
            describe(figures.submits),
            "",
            None,
        ),
        *(
            (
                f"{name} beside {costs.backlogs[-1]} over beside {costs.backlogs[0]}",
                f"{times:.2f}x",
                f"≤ {MOST_GROWTH}x",
                times <= MOST_GROWTH,
            )
            for name, times in growth.items()
        ),
        (
            f"status polls while the runner computes, {figures.pollers} clients",
            describe(polls),
            f"≥ {LEAST_POLLS_PER_SECOND}/s, p99 < {MOST_POLL_MS} ms",
            polls.per_second >= LEAST_POLLS_PER_SECOND and polls.p99_ms < MOST_POLL_MS,
        ),
        (
            "the runner's steps under these polls, and without",
            f"{figures.steps_polled:.1f}/s, {figures.steps_alone:.1f}/s",
            "",
            None,
        ),
        (
            f"accepted to COMPLETED over pipeline and encoding, medians of {len(figures.served)}",
            f"{served:.3f} s / {bare:.3f} s = {ratio:.3f}",
            f"≤ {MOST_RATIO}",
            ratio <= MOST_RATIO,
        ),
    ]


def cost_table(costs: Costs) -> list[str]:
    """Return the single calls: median and 99th percentile, in milliseconds."""
    lines = [
        f"| backlog | {' | '.join(f'{name} p50, p99 (ms)' for name in OPERATIONS)} |",
        f"|---:|{'---|' * len(OPERATIONS)}",
    ]
    for backlog in costs.backlogs:
        samples = [costs.samples[name, backlog] for name in OPERATIONS]
        cells = [f"{ms(taken, 50)}, {ms(taken, 99)}" for taken in samples]
        lines.append(f"| {backlog} | {' | '.join(cells)} |")
    return lines


def describe(load: Load) -> str:
    """Write a rate with its latencies."""
    return f"{load.per_second:.0f}/s, p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms"


def ms(seconds: Sequence[float], percent: float) -> str:
    """Write a percentile of times in milliseconds."""
    return f"{percentile(seconds, percent) * 1000:.2f}"
