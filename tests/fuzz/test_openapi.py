"""Every route of a real server, by requests that schemathesis makes from the server's document.

FUZZ_EXAMPLES scales the run (45 give about 5,000 cases, 1,300 about 50,000), FUZZ_SEED varies it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import StartServer
from tests.contract.fault_server import ENDPOINT, start_fault_server

EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "45")
SEED = os.environ.get("FUZZ_SEED", "1")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
SECONDS_PER_EXAMPLE = 5
LEAST_CASES = 4500
EDIT = "fal-ai/flux-2/flash/edit"


def test_no_request_gets_what_the_document_does_not_promise(
    start_server: StartServer, tmp_path: Path
) -> None:
    """All phases: no 5xx, no undocumented status, no body beside its schema."""
    server = start_fault_server(start_server, tmp_path / "data")
    report = tmp_path / "report.json"
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{server.http}/openapi.json",
        f"--checks={','.join(CHECKS)}",
        "--phases=examples,coverage,fuzzing,stateful",
        f"--max-examples={EXAMPLES}",
        f"--seed={SEED}",
        "--continue-on-failure",
        "--warnings=off",
        "--report=json",
        f"--report-json-path={report}",
    ]
    folder = str(Path(__file__).parent)
    run = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120 + SECONDS_PER_EXAMPLE * int(EXAMPLES),
        env={**os.environ, "SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": folder},
    )
    sys.stdout.write(run.stdout)  # the summary: seed, cases, and how to repeat a failure
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["operations"]["tested"] == found["operations"]["total"]
    assert found["test_cases"]["generated"] >= LEAST_CASES
    # Cases that are all refused at the door would prove little about what is behind it.
    for path in (f"/{ENDPOINT}", f"/queue/{ENDPOINT}", f"/{EDIT}"):
        rates = found["valid_rates"][f"POST {path}"]["fuzzing"]
        assert rates["accepted"] > rates["rejected"], path
    assert server.stop() == 0
    assert not [line for line in server.lines if "unhandled error" in line]
