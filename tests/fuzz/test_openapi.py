"""Every route of a real server, by requests that schemathesis makes from the server's document.

FUZZ_EXAMPLES scales the run (45 give about 5,000 cases, 1,300 about 50,000), FUZZ_SEED varies it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import SMALL_INPUTS
from tests.contract.fault_server import ENDPOINT, start_fault_server
from tests.contract.test_family import ALIASES

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "45"))
SEED = os.environ.get("FUZZ_SEED", "1")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
MOST_SECONDS = 120 + 5 * EXAMPLES
LEAST_CASES = 4500
EDIT = "fal-ai/flux-2/flash/edit"
pytestmark = pytest.mark.timeout(MOST_SECONDS + 60)

FEW = max(3, EXAMPLES // 5)
"""Examples for each door of an endpoint that differs from a thoroughly tried one in its fields."""


def rest_of(server: RunningServer) -> list[str]:
    """Return the endpoints that the server has beside those that are tried thoroughly."""
    document = httpx2.get(f"{server.http}/openapi.json", trust_env=False).json()
    titles = [item["post"]["operationId"] for item in document["paths"].values() if "post" in item]
    served = [title.removeprefix("run ") for title in titles if title.startswith("run ")]
    return [endpoint_id for endpoint_id in served if endpoint_id not in SMALL_INPUTS]


def paths_of(endpoint_ids: list[str]) -> str:
    """Return a pattern of all paths that take requests for these endpoints, or tell of them.

    Requests are told of under applications; those that have other endpoints, too, are not in it.
    """
    apps = {app_of(each) for each in endpoint_ids} - {app_of(each) for each in SMALL_INPUTS}
    doors, kept = ("|".join(map(re.escape, sorted(names))) for names in (endpoint_ids, apps))
    return f"^((/queue)?/({doors})(/stream)?|/queue/({kept})/requests/.*)$"


def app_of(endpoint_id: str) -> str:
    """Return the application of an endpoint."""
    return "/".join(endpoint_id.split("/")[:2])


@pytest.fixture(scope="module")
def server(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server that makes images at once, and serves whatever it can."""
    folder = tmp_path_factory.mktemp("fuzz")
    server = start_fault_server(start_server, folder, FLUX2_ALIASES=",".join(ALIASES))
    yield server
    assert server.stop() == 0
    assert not [line for line in server.lines if "unhandled error" in line]


def fuzz(server: RunningServer, folder: Path, examples: int, *options: str) -> Any:
    """Run schemathesis, which must find nothing, and return its report."""
    report = folder / "report.json"
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{server.http}/openapi.json",
        f"--checks={','.join(CHECKS)}",
        f"--max-examples={examples}",
        f"--seed={SEED}",
        "--continue-on-failure",
        "--warnings=off",
        "--report=json",
        f"--report-json-path={report}",
        *options,
    ]
    run = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=MOST_SECONDS,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "fuzz_hooks",
            "PYTHONPATH": str(Path(__file__).parent),
        },
    )
    sys.stdout.write(run.stdout)  # the summary: seed, cases, and how to repeat a failure
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(report.read_text(encoding="utf-8"))


def test_no_request_gets_what_the_document_does_not_promise(
    server: RunningServer, tmp_path: Path
) -> None:
    """All phases: no 5xx, no undocumented status, no body beside its schema."""
    found = fuzz(
        server,
        tmp_path,
        EXAMPLES,
        "--phases=examples,coverage,fuzzing,stateful",
        f"--exclude-path-regex={paths_of(rest_of(server))}",
    )
    assert found["operations"]["tested"] == found["operations"]["selected"]
    assert found["test_cases"]["generated"] >= LEAST_CASES
    # Cases that are all refused at the door would prove little about what is behind it.
    for path in (f"/{ENDPOINT}", f"/queue/{ENDPOINT}", f"/{EDIT}"):
        rates = found["valid_rates"][f"POST {path}"]["fuzzing"]
        assert rates["accepted"] > rates["rejected"], path


def test_the_rest_of_the_family_keeps_its_promises_too(
    server: RunningServer, tmp_path: Path
) -> None:
    """A few cases for each door of every other endpoint, among them images."""
    endpoint_ids = rest_of(server)
    assert set(ALIASES) < set(endpoint_ids)
    pattern = f"--include-path-regex={paths_of(endpoint_ids)}"
    found = fuzz(server, tmp_path, FEW, "--phases=fuzzing", pattern)
    assert found["operations"]["tested"] == found["operations"]["selected"] > 3 * len(endpoint_ids)
    for endpoint_id in endpoint_ids:
        assert found["valid_rates"][f"POST /queue/{endpoint_id}"]["fuzzing"]["accepted"]
