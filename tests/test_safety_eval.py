"""`scripts/safety_eval` on pictures whose scores are known: rates, JSON and plot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 120


def evaluate(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script as its wrapper does."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FLUX2_")}
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "safety_eval.py", *map(str, arguments)],
        env={**inherited, **env},
        capture_output=True,
        timeout=LIMIT_SECONDS,
        text=True,
        check=False,
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return sorted pictures: the test checker flags one safe one, and misses one unsafe one."""
    folder = tmp_path / "pictures"
    for name, red in {
        "safe/a.png": 0,
        "safe/deep/b.webp": 100,
        "safe/c.jpg": 110,  # a score of 0.09
        "safe/d.png": 255,
        "unsafe/e.png": 255,
        "unsafe/f.png": 139,  # 0.86
        "unsafe/g.png": 124,  # 0.36
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (red, 0, 0)).save(path)
    (folder / "unsafe" / "notes.txt").write_text("no picture")
    return folder


def test_rates_are_told_at_each_threshold(pictures: Path, demo_model: Path, tmp_path: Path) -> None:
    """A table with the server's own threshold, every score as JSON, and a plot."""
    output = tmp_path / "output"
    done = evaluate(*(pictures, "--output", output, "--device", "cpu"), FLUX2_MODEL=str(demo_model))
    assert done.returncode == 0, done.stderr
    assert "4 safe and 3 unsafe pictures" in done.stdout
    assert "left out: " in done.stderr
    assert "notes.txt" in done.stderr
    (marked,) = [line for line in done.stdout.splitlines() if "FLUX2_SAFETY_THRESHOLD" in line]
    assert marked.split()[:4] == ["0.500", "25.0%", "33.3%", "2"]
    told = json.loads((output / "safety-eval.json").read_text())
    rates = {row["threshold"]: row for row in told["rates"]}
    assert (rates[0.3]["false_positive"], rates[0.3]["false_negative"]) == (0.25, 0)
    assert rates[0.9]["false_negative"] == pytest.approx(2 / 3)
    assert [row["tolerance"] for row in told["rates"] if row["tolerance"]] == [1, 2, 3, 4, 5]
    assert told["scores"]["safe"]["safe/d.png"] > 0.99
    assert len(told["scores"]["unsafe"]) == 3
    with Image.open(output / "safety-eval.png") as plot:
        assert (plot.format, plot.size) == ("PNG", (720, 480))
        assert len(set(plot.convert("L").tobytes())) > 20


def test_options_replace_the_settings(pictures: Path, demo_model: Path, tmp_path: Path) -> None:
    """Another folder and other labels; the rates turn around with them."""
    done = evaluate(
        *(pictures, "--checker", demo_model / "safety_checker", "--labels", "normal"),
        *("--output", tmp_path, "--device", "cpu"),
        FLUX2_SAFETY_THRESHOLD="0.6",
    )
    assert done.returncode == 0, done.stderr
    (marked,) = [line for line in done.stdout.splitlines() if "FLUX2_SAFETY_THRESHOLD" in line]
    assert marked.split()[:3] == ["0.600", "75.0%", "66.7%"]


@pytest.mark.parametrize("missing", ["checker", "pictures"])
def test_what_is_missing_is_named(
    pictures: Path, demo_model: Path, tmp_path: Path, missing: str
) -> None:
    """A line, and no traceback."""
    checker = tmp_path / "none" if missing == "checker" else demo_model / "safety_checker"
    folder = pictures if missing == "checker" else tmp_path / "none"
    done = evaluate(folder, "--checker", checker, "--output", tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "none") in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_tells_how_it_is_used() -> None:
    """Without a folder it says what it wants, and fails."""
    done = subprocess.run(
        [ROOT / "scripts" / "safety_eval"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "scripts/safety_eval FOLDER" in done.stderr
