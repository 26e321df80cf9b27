"""A kill at the n-th call to database or disk: E1 of the promises, in steps."""

import subprocess
import sys

from tests.faults.gateway import ROOT

EVERY = 5
"""Of all kill points, to save time; odd, so that moments before and after calls take turns."""


def test_a_kill_at_any_call_loses_nothing() -> None:
    """Whatever the caller was told before the kill holds after it, and nothing is left over."""
    command = [sys.executable, "-m", "tests.faults.stepwise", str(EVERY)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert "0 violations" in done.stdout
    assert done.stdout.count("life ") > 20
    for moment in ("before ", "after ", "COMMIT", "fsync"):
        assert moment in done.stdout
