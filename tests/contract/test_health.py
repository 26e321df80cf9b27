"""The gateway stays quick while the runner computes: two processes, so that this can hold."""

import ssl
import statistics
import time
from collections.abc import Callable

import httpx2
import pytest

from tests.conftest import RunningServer
from tests.contract.conftest import WAIT_SECONDS, Api

ROUNDS = 60
MEASURE_SECONDS = 3
"""At least so many rounds and so long, which is several steps of the model."""

LIMIT_SECONDS = 0.050


def measure(call: Callable[[], httpx2.Response], code: int) -> float:
    """Return how many seconds a call takes."""
    started = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - started
    assert answer.status_code == code
    return seconds


def test_quick_while_the_runner_computes(
    api: Api, server: RunningServer, busy_runner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of all probes and status polls are answered within 50 ms, on kept-open connections."""
    context = ssl.create_default_context(cafile=server.ca_path)
    address = f"https://{server.tls_address}"
    with httpx2.Client(
        base_url=address, verify=context, timeout=WAIT_SECONDS, trust_env=False
    ) as tls:
        calls: dict[str, tuple[Callable[[], httpx2.Response], int]] = {
            "/health/live": (lambda: api.http.get("/health/live"), 200),
            "/health/ready": (lambda: api.http.get("/health/ready"), 200),
            "status": (lambda: api.status(busy_runner), 202),
            "status with logs": (lambda: api.status(busy_runner, logs="1"), 202),
            "status over https": (lambda: tls.get(f"{busy_runner}/status"), 202),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        started = time.monotonic()
        while len(seconds["status"]) < ROUNDS or time.monotonic() - started < MEASURE_SECONDS:
            for name, (call, code) in calls.items():
                seconds[name].append(measure(call, code))
    assert api.status(busy_runner).json()["status"] == "IN_PROGRESS"
    with capsys.disabled():
        for name, taken in seconds.items():
            median, worst = statistics.median(taken) * 1000, max(taken) * 1000
            text = f"median {median:.1f} ms, worst {worst:.1f} ms of {len(taken)}"
            print(f"\n{name}: {text}", end="")  # noqa: T201
    for name, taken in seconds.items():
        assert statistics.median(taken) < LIMIT_SECONDS, name
