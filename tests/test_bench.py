"""The benchmark runs from end to end; its figures are for people, only their form is checked."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 240

FEW = "--backlogs 20 --rounds 1 --samples 3 --seconds 1 --pairs 1 --steps 4"
"""The least of everything, on one backlog."""


def run_bench(
    words: str, *paths: str | Path, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a benchmark as its own command: its name and options, then what may have spaces.

    `path` is where it finds other programs.
    """
    name, *options = words.split()
    return subprocess.run(
        [sys.executable, f"scripts/bench_{name}.py", "--no-append", *options, *paths],
        cwd=ROOT,
        env={**os.environ, "PATH": path or os.environ["PATH"]},
        capture_output=True,
        timeout=LIMIT_SECONDS,
        text=True,
        check=False,
    )


def test_it_measures_and_reports(demo_model: Path, tmp_path: Path) -> None:
    """Every figure and cost is there, the data folder is clean again, and nothing is appended.

    Without wrk on the path, so that the loader in Python is what runs on every machine.
    """
    report = ROOT / "docs" / "BENCHMARKS.md"
    before = report.read_bytes()
    done = run_bench(
        f"queue {FEW}",
        "--model",
        demo_model,
        "--data",
        tmp_path / "data",
        path=str(Path(sys.executable).parent),
    )
    assert done.returncode == 0, done.stderr
    assert "for want of wrk" in done.stdout
    for row in (
        r"\| submits, 8 clients, each synced \| \d+/s, p50 [\d.]+ ms, p99 [\d.]+ ms \|  \|  \|",
        r"\| (claim|status|submit) beside 20 over beside 20 \| [\d.]+x \| ≤ 1.3x \| \S+ \|",
        r"\| status polls while .* \| \d+/s, .* \| ≥ 500/s, p99 < 50 ms \| \S+ \|",
        r"\| accepted to COMPLETED .* \| [\d.]+ s / [\d.]+ s = [\d.]+ \| ≤ 1.05 \| \S+ \|",
        r"\| 20 \|( [\d.]+, [\d.]+ \|){4}",
    ):
        assert re.search(f"^{row}$", done.stdout, re.MULTILINE), (row, done.stdout)
    assert list((tmp_path / "data").iterdir()) == []
    assert report.read_bytes() == before


def test_it_measures_the_pipeline_beside_plain_diffusers() -> None:
    """On the tiny model; pictures are equal, and every ratio is told whatever it is."""
    done = run_bench("cpu --model tiny --pairs 1 --steps 12")
    assert done.returncode in (0, 1), done.stderr
    for row in (
        *(
            rf"\| {name} \| [\d.]+x \([\d.]+ s / [\d.]+ s\) \| ≥ [\d.]+x \| \S+ \|"
            for name in ("none", "none, 2 references", "none, compiled", "high")
        ),
        r"\| none, pictures equal to the bit \| 2 of 2 \| all \| held \|",
        r"\| encoding saved in a repeated request \| [\d.]+% \(.*\) \| ≥ 95% \| held \|",
        r"\| safety check \(ViT-base\), of an image \| [\d.]+% \(.*\) \| ≤ 3% \| \S+ \|",
    ):
        assert re.search(f"^{row}$", done.stdout, re.MULTILINE), (row, done.stdout)


def test_it_measures_what_previews_cost() -> None:
    """On the tiny model: time with and without, and that the first comes early enough."""
    done = run_bench("previews --model tiny --pairs 1 --steps 4")
    assert done.returncode in (0, 1), done.stderr
    for row in (
        *(
            rf"\| {name} time that previews add \| [-+][\d.]+% \(.*\) \| ≤ 3% \| \S+ \|"
            for name in ("wall", "CPU")
        ),
        r"\| previews of a picture \| [1-4] \|  \|  \|",
        r"\| the first, with step \| [1-3] \| ≤ 3 \| held \|",
    ):
        assert re.search(f"^{row}$", done.stdout, re.MULTILINE), (row, done.stdout)


def test_the_benchmark_of_cards_runs_dry() -> None:
    """All of it but the card: each level has its row, and plain diffusers one for each kind."""
    done = run_bench(
        "gpu --no-compile --model tiny --device cpu "
        "--sizes 256x192 --references 0 1 --repeats 1 --steps 12"
    )
    assert done.returncode == 0, done.stderr
    assert "a dry run and no figure" in done.stdout
    for level in ("diffusers", "none", "regular", "high", "flash"):
        for references in (0, 1):
            row = rf"^\| 256x192 \| {references} \| {level}\b.*\|$"
            assert re.search(row, done.stdout, re.MULTILINE), (row, done.stdout)


def test_it_measures_the_memory_of_inputs(tmp_path: Path) -> None:
    """The images go through a real server, by data URI, and the gateway's memory is told."""
    done = run_bench("inputs --no-urls --requests 12 --side 400", "--data", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    for row in (
        r"\| gateway at rest, before and after \| \d+ and \d+ MiB \| < 300 MiB \| held \|",
        r"\| gateway, growth for 100 requests \| [-+][\d.]+ MiB \| < 1 MiB \| \S+ \|",
        r"\| gateway, most at a time \| \d+ MiB \|  \|  \|",
        r"\| `server.runners.runner_main` at the end \| \d+ MiB \|  \|  \|",
    ):
        assert re.search(f"^{row}$", done.stdout, re.MULTILINE), (row, done.stdout)
    assert list((tmp_path / "data").iterdir()) == []


def test_it_measures_how_long_the_device_idles(tmp_path: Path) -> None:
    """Small pictures through a real server: every figure is there, and nothing is left behind."""
    done = run_bench("overlap --requests 4 --seconds 0.1 --side 512", "--data", tmp_path / "data")
    assert done.returncode in (0, 1), done.stderr
    for row in (
        r"\| device idle between two requests, .* \| [\d.]+ and [\d.]+ ms \| .* \| \S+ \|",
        r"\| share of the time in which the device drew \| [\d.]+% \| ≥ 97% \| \S+ \|",
        r"\| encoding one image, on its own \| [\d.]+ s \|  \|  \|",
        r"\| a drawing took longer than its waits, median \| [\d.]+ ms \|  \|  \|",
    ):
        assert re.search(f"^{row}$", done.stdout, re.MULTILINE), (row, done.stdout)
    assert list((tmp_path / "data").iterdir()) == []


def test_the_command_tells_how_it_is_used() -> None:
    """Without the name of a benchmark it says which there are, and fails."""
    done = subprocess.run(
        [ROOT / "scripts" / "bench"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "scripts/bench queue" in done.stderr
    assert "scripts/bench overlap" in done.stderr
    assert "scripts/bench inputs" in done.stderr


def test_a_crowd_at_the_edge_leaves_a_client_quick(demo_model: Path) -> None:
    """Beside idle and dripping connections its p99 stays under a second: the script holds that."""
    done = run_bench(
        "edge --idle 100 --dripping 40 --streams 100 --seconds 3", "--model", demo_model
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "beside 100 idle and 40 dripping connections" in done.stdout
    assert "100 status streams at once" in done.stdout
