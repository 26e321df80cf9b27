"""Everything works where there is no network: in a namespace that has nothing but loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.conftest import SCRIPTS, WAIT_SECONDS, skip_or_fail

WAYS = (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])
"""As root, or as anybody where the kernel lets users make namespaces."""


@pytest.fixture(scope="module")
def unshare() -> list[str]:
    """Return the command that runs another one without a network; skip where none is allowed."""
    if not shutil.which("unshare"):
        skip_or_fail("unshare is not installed")
    for way in WAYS:
        if subprocess.run([*way, "true"], capture_output=True, check=False).returncode == 0:
            break
    else:
        skip_or_fail("no network namespace can be made here (unshare --net)")
    return way


def test_serve_and_generate_without_a_network(unshare: list[str], tmp_path: Path) -> None:
    """Model, server, certificate and client need none, and nothing even tries to reach one."""
    done = subprocess.run(
        [*unshare, sys.executable, "-P", SCRIPTS / "offline.py", tmp_path],
        env={key: value for key, value in os.environ.items() if not key.startswith("FLUX2_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS * 2,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["interfaces"] == ["lo"]
    assert told["network"] == "ENETUNREACH"
    assert told["image"]["url"].startswith("https://localhost:")
    assert (told["image"]["width"], told["image"]["height"]) == (512, 512)
    assert told["file_bytes"] == told["image"]["file_size"] > 1000
    assert told["async_seed"] == 5
    assert told["exit_code"] == 0
    log = "".join(told["log"]).lower()
    for word in ("huggingface.co", "connection error", "max retries", "name resolution"):
        assert word not in log
