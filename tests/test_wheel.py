"""What an installation has: the wheel is built for real, as pip builds it, without a network."""

import subprocess
import sys
import zipfile
from pathlib import Path

from pipelines.demonstration import DEMO_CHECKPOINT

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 120


def test_the_wheel_carries_the_demonstration_checkpoint(tmp_path: Path) -> None:
    """Every file of it, whole: `flux2-serve serve` works wherever the wheel is installed."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=LIMIT_SECONDS,
    )
    (path,) = tmp_path.glob("*.whl")
    files = [file for file in DEMO_CHECKPOINT.rglob("*") if file.is_file()]
    expected = {file.relative_to(ROOT).as_posix(): file.stat().st_size for file in files}
    with zipfile.ZipFile(path) as wheel:
        sizes = {entry.filename: entry.file_size for entry in wheel.infolist()}
    assert "pipelines/demo_checkpoint/model_index.json" in expected
    assert {name: sizes.get(name) for name in expected} == expected
