"""Limits of fal's clients that run out: the server ends the request, by a 504 or by their cancel.

`start_timeout` is the server's to watch, and ends in 504. `client_timeout` and JavaScript's
`timeout` are the client's own: it gives up, cancels, and does not look at the answer.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    WAIT_SECONDS,
    Api,
    connect,
    kept_path,
    run_python_client,
    skip_or_fail,
)
from tests.contract.fault_server import ENDPOINT, held, start_fault_server

SCRIPTS = Path(__file__).parent / "js"


@pytest.fixture(scope="module")
def fault_server(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server, with TLS for the Python client, whose requests run until told."""
    data_dir = tmp_path_factory.mktemp("data")
    server = start_fault_server(start_server, data_dir, FLUX2_TLS_PORT="0")
    yield server
    assert server.stop() == 0


@pytest.fixture
def box(fault_server: RunningServer) -> Iterator[Api]:
    """Return plain calls on that server."""
    with connect(fault_server) as http:
        yield Api(http)


def wait_result(box: Api, request_id: str) -> httpx2.Response:
    """Return the request's outcome once there is one, as a page of another origin gets it."""
    kept = kept_path(ENDPOINT, request_id)
    box.wait(kept)
    return box.http.get(kept, headers={"origin": "http://localhost:3000"})


def check_timed_out(box: Api, request_id: str) -> None:
    """The request's outcome is fal's 504, with the headers that keep clients from trying again."""
    answer = wait_result(box, request_id)
    assert answer.status_code == 504
    assert answer.json() == {"detail": "Request timed out", "error_type": "request_timeout"}
    assert answer.headers["x-fal-error-type"] == "request_timeout"
    assert answer.headers["x-fal-request-timeout-type"] == "user"
    # The client in a browser tries again after a 504 unless the page may read that header.
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-fal-request-id", "x-fal-request-timeout-type"} <= set(exposed)


def check_cancelled(box: Api, request_id: str) -> None:
    """The request's outcome is fal's 499 of a cancelled one."""
    answer = wait_result(box, request_id)
    assert answer.status_code == 499
    assert answer.json()["error_type"] == "client_cancelled"


def count_outcomes(box: Api) -> dict[str, float]:
    """Return how many requests came to which outcome: a client that tried again shows here."""
    prefix = 'flux2_jobs_total{outcome="'
    lines = box.http.get("/metrics").text.splitlines()
    found = (line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix))
    return {outcome: float(count) for outcome, count in found}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return what was added."""
    added = {outcome: count - before.get(outcome, 0) for outcome, count in after.items()}
    return {outcome: count for outcome, count in added.items() if count}


def test_python_client(fault_server: RunningServer, box: Api, tmp_path: Path) -> None:
    """`start_timeout` raises the 504, `client_timeout` its own error after a cancel; no retries.

    With `client_timeout` alone the client sends the same limit for the start, so whether it hears
    of the 504 or gives up first is a matter of timing.
    """
    before = count_outcomes(box)
    gate = str(tmp_path / "gate")
    found = run_python_client(fault_server, "timeouts.py", ENDPOINT, held(), gate)
    timed_out = 0
    for client in ("sync", "async"):
        ends = found["waiting"][client]
        for way in ("subscribe_start", "run_start"):
            end = ends[way]
            assert (end["kind"], end["status_code"]) == ("http", 504)
            assert (end["error_type"], end["timeout_type"]) == ("request_timeout", "user")
            check_timed_out(box, end["request_id"])
        assert ends["subscribe_client"]["kind"] == "client"
        check_cancelled(box, ends["subscribe_client"]["request_id"])
        both = ends["subscribe_both"]
        assert both["kind"] == "client" or both["error_type"] == "request_timeout"
        outcome = wait_result(box, both["request_id"]).status_code
        assert outcome in (499, 504)
        timed_out += 2 + (outcome == 504)
    assert found["running"]["kind"] == "client"
    check_cancelled(box, found["running"]["request_id"])
    # It was begun in time, and may then take as long as it needs.
    assert found["first"] == {"status": "InProgress", "images": 1}
    added = grown(before, count_outcomes(box))
    assert added == {"ok": 1, "timed_out": timed_out, "cancelled": 9 - timed_out}


def test_javascript_client(fault_server: RunningServer, box: Api, tmp_path: Path) -> None:
    """`startTimeout` gives an ApiError 504 without retries, `timeout` an error after a cancel."""
    node = shutil.which("node")
    if node is None:
        skip_or_fail("node is not installed")
    if not (SCRIPTS / "node_modules" / "@fal-ai" / "client").is_dir():
        skip_or_fail("@fal-ai/client is not installed: run `npm ci` in tests/contract/js")
    before = count_outcomes(box)
    proxy, gate = f"{fault_server.http}/api/fal/proxy", str(tmp_path / "gate")
    done = subprocess.run(
        [node, "timeouts.mjs", proxy, ENDPOINT, json.dumps(held()), gate],
        cwd=SCRIPTS,
        env={"PATH": os.environ.get("PATH", "")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    for way in ("subscribeStart", "runStart"):
        end = found[way]
        assert (end["status"], end["isUserTimeout"]) == (504, True)
        assert end["body"]["error_type"] == "request_timeout"
        check_timed_out(box, end["requestId"])
    for way in ("subscribeTimeout", "running"):
        assert "Client timed out" in found[way]["message"]
        check_cancelled(box, found[way]["requestId"])
    check_cancelled(box, found["streamTimeout"]["requestId"])
    assert len(found["uncaught"]) == 1
    assert found["first"] == {"status": "IN_PROGRESS", "images": 1}
    added = grown(before, count_outcomes(box))
    assert added == {"ok": 1, "timed_out": 2, "cancelled": 3}
