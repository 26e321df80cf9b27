"""kill -9 at random moments under real callers: E1 and F4 of the promises.

The full measure is `scripts/crash --jobs 10000 --kills 500`.
"""

import subprocess
import sys

import pytest

from tests.faults.gateway import ROOT


@pytest.mark.parametrize(("pipeline", "jobs", "kills"), [("instant", 1000, 50), ("tiny", 12, 3)])
def test_nothing_is_lost_and_nothing_done_twice(pipeline: str, jobs: int, kills: int) -> None:
    """Every accepted request ends once, with its own files, whoever is killed when."""
    command = [sys.executable, "-m", "scripts.crash", "--pipeline", pipeline]
    command += ["--jobs", str(jobs), "--kills", str(kills)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert f"accepted: {jobs}\n" in done.stdout
    assert done.stdout.endswith("\n0 violations\n")
