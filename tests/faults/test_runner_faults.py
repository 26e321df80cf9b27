"""Runners that fail in every way they can, under a real gateway: F1 to F6 of the promises."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import MakeGateway
from tests.faults.gateway import FAULTS, Client, Gateway, wait_until
from tests.faults.rows import row_of

LIMIT_SECONDS = 0.5
FREED_SECONDS = 6.0
RUNNER_LOST = {"detail": "The runner was lost", "error_type": "runner_disconnected"}
FAST_RESPAWN = {"LAUNCHER_FAULTS": json.dumps({"first_respawn_seconds": 0.05})}


def is_gone(pid: int) -> bool:
    """Say whether the process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_out_of_memory_is_each_request_s_alone(gateway: Gateway, client: Client) -> None:
    """F1: a hundred in a row fail with fal's words, and the same runner makes the next image."""
    pid = gateway.runner()
    bad = [client.submit(f"oom {number}") for number in range(100)]
    good = client.submit("plain")
    assert client.wait(good).status_code == 200
    for request_id in bad:
        answer = client.get(request_id)
        assert answer.status_code == 503
        assert answer.json() == {
            "detail": "CUDA error: out of memory",
            "error_type": "runner_server_error",
        }
    assert gateway.runner() == pid
    assert gateway.count_lines("out of memory, trying once more") == 100
    assert row_of(gateway.data_dir, good)["attempts"] == 1


def test_memory_is_freed_before_the_one_retry(gateway: Gateway, client: Client) -> None:
    """F1: what fits after the caches are emptied is made, at the cost of no attempt."""
    request_id = client.submit("oom-once")
    assert client.wait(request_id).status_code == 200
    assert row_of(gateway.data_dir, request_id)["attempts"] == 1


def test_a_lost_device_ends_the_process_and_not_the_job(
    gateway: Gateway, client: Client, tmp_path: Path
) -> None:
    """F2: the sick process exits with its fixed code, makes nothing more, and the job is made."""
    pid = gateway.runner()
    request_id = client.submit(f"once {tmp_path / 'flag'} lost")
    behind = client.submit("plain")
    started = time.monotonic()
    assert client.wait(request_id).status_code == 200
    assert time.monotonic() - started < 5
    assert client.wait(behind).status_code == 200
    assert "ended with code 4" in gateway.wait_line('"the runner died"')
    assert gateway.runner() != pid
    row = row_of(gateway.data_dir, request_id)
    assert (row["attempts"], row["runner_deaths"]) == (2, 1)


@pytest.mark.parametrize("fault", ["hang", "spin", "seize"])
def test_a_hang_is_ended(make_gateway: MakeGateway, tmp_path: Path, fault: str) -> None:
    """F3: deaf to SIGTERM, busy or holding the GIL: it is gone in time and the job is made."""
    settings = {"STEP_SECONDS": str(LIMIT_SECONDS), "STAGE_SECONDS": "30"}
    gateway = make_gateway(**settings).start()
    client, pid = Client(gateway), gateway.runner()
    request_id = client.submit(f"once {tmp_path / 'flag'} {fault}")
    client.wait_running(request_id)
    wait_until(lambda: is_gone(pid), LIMIT_SECONDS + FREED_SECONDS, "it still hangs")
    assert client.wait(request_id).status_code == 200
    assert "hung: silent for 0.5 s" in gateway.wait_line('"the runner died"')
    row = row_of(gateway.data_dir, request_id)
    assert (row["attempts"], row["runner_deaths"]) == (2, 1)


def test_a_stopped_runner_is_ended(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """F3: so is a process that no longer gets any time at all."""
    gateway = make_gateway(STEP_SECONDS=str(LIMIT_SECONDS)).start()
    client, pid = Client(gateway), gateway.runner()
    request_id = client.submit(f"once {tmp_path / 'flag'} hold")
    client.wait_running(request_id)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_gone(pid), LIMIT_SECONDS + FREED_SECONDS, "it still hangs")
    assert client.wait(request_id).status_code == 200


def test_a_runner_that_takes_no_orders_is_ended(make_gateway: MakeGateway) -> None:
    """F3: nor does an order too long for the socket's buffer wait for ever to be read."""
    gateway = make_gateway(STAGE_SECONDS=str(LIMIT_SECONDS)).start()
    client, pid = Client(gateway), gateway.runner()
    os.kill(pid, signal.SIGSTOP)
    request_id = client.submit("plain " + "x" * 1_000_000)
    wait_until(lambda: is_gone(pid), LIMIT_SECONDS + FREED_SECONDS, "it still hangs")
    assert client.wait(request_id).status_code == 200


def test_a_load_without_end_is_told(make_gateway: MakeGateway) -> None:
    """F3: loading has a limit of its own; while it fails, ready says so and live is well."""
    gateway = make_gateway(PIPELINE_FACTORY="fault_pipelines:endless", LOAD_SECONDS="0.8")
    gateway.start(until='"no runner"')
    client = Client(gateway)
    answer = client.ready()
    assert answer.status_code == 503
    assert answer.json()["reason"] == "the runner hung: silent for 0.8 s"
    assert client.http.get("/health/live").status_code == 200


def test_a_segfault_costs_one_attempt(gateway: Gateway, client: Client, tmp_path: Path) -> None:
    """F4: the gateway keeps answering, a new runner makes the job, and the spool is clean."""
    request_id = client.submit(f"once {tmp_path / 'flag'} segfault")
    assert client.wait(request_id).status_code == 200
    assert "killed by SIGSEGV" in gateway.wait_line('"the runner died"')
    assert row_of(gateway.data_dir, request_id)["attempts"] == 2
    assert not list(gateway.data_dir.glob("spool/*"))


def test_a_poison_job_among_a_hundred(gateway: Gateway, client: Client) -> None:
    """F5: it kills three runners and no fourth, with pauses in between; all others are made."""
    before = [client.submit("plain") for _ in range(50)]
    poison = client.submit("die")
    after = [client.submit("plain") for _ in range(49)]
    assert [client.wait(request_id).status_code for request_id in before + after] == [200] * 99
    answer = client.wait(poison)
    assert (answer.status_code, answer.json()) == (503, RUNNER_LOST)
    assert answer.headers["x-fal-error-type"] == "runner_disconnected"
    assert gateway.count_lines('"the runner died"') == 3
    assert row_of(gateway.data_dir, poison)["attempts"] == 3
    pauses = [f'"retry_seconds": {seconds}' for seconds in (0.5, 1.0, 2.0)]
    assert [gateway.count_lines(pause) for pause in pauses] == [1, 1, 1]


def test_no_retry_means_one_runner(gateway: Gateway, client: Client) -> None:
    """F5: with X-Fal-No-Retry the first death is the last."""
    request_id = client.submit("die", headers={"x-fal-no-retry": "1"})
    assert client.wait(request_id).json() == RUNNER_LOST
    assert client.wait(client.submit("plain")).status_code == 200
    assert gateway.count_lines('"the runner died"') == 1
    assert row_of(gateway.data_dir, request_id)["attempts"] == 1


def test_five_failed_loads_then_success(make_gateway: MakeGateway) -> None:
    """F6: live is well, ready tells why not, requests are kept, and the sixth load serves them."""
    gateway = make_gateway(PIPELINE_FACTORY="fault_pipelines:flaky")
    gateway.launcher = (sys.executable, str(FAULTS / "launcher.py"))
    gateway.environment = FAST_RESPAWN
    gateway.start(until='"no runner"')
    client = Client(gateway)
    request_id = client.submit("plain")
    answer = client.ready()
    assert answer.status_code == 503
    assert "finds no model" in answer.json()["reason"]
    assert client.http.get("/health/live").status_code == 200
    assert client.status(request_id) == "IN_QUEUE"
    assert client.wait(request_id).status_code == 200
    assert client.ready().status_code == 200
    pauses = ["0.05", "0.1", "0.2", "0.4", "0.8"]
    assert [gateway.count_lines(f'"retry_seconds": {pause},') for pause in pauses] == [1] * 5
    assert row_of(gateway.data_dir, request_id)["attempts"] == 1


def test_progress_of_loading_is_shown(make_gateway: MakeGateway) -> None:
    """F6: ready tells the stage and how much of it is done, until the runner is ready."""
    gateway = make_gateway(PIPELINE_FACTORY="fault_pipelines:gradual").start(until=None)
    client = Client(gateway)
    expected = [{"stage": "warm_up", "fraction": 0.25}]
    wait_until(lambda: client.ready().json()["loading"] == expected, 60, "it does not load")
    answer = client.ready()
    assert (answer.status_code, answer.json()["reason"]) == (503, "the runner is loading")
    (gateway.data_dir.parent / "gate").touch()
    wait_until(lambda: client.ready().status_code == 200, 60, "it is never ready")
    assert client.ready().json()["loading"] == [None]


def test_an_idle_runner_that_dies_is_replaced(gateway: Gateway, client: Client) -> None:
    """F11: ready falls while there is no runner and comes back with the next, within seconds."""
    pid = gateway.runner()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: client.ready().status_code == 503, 5, "ready is a lie")
    wait_until(lambda: client.ready().status_code == 200, 5, "no new runner")
    assert gateway.runner() != pid


def resident_mib(pid: int) -> float:
    """Return how much memory the process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_memory_does_not_creep(make_gateway: MakeGateway) -> None:
    """F10: seven hundred more requests leave gateway and runner about as large as they were.

    SQLite's caches are still filling at this count; after three thousand requests the slope was
    0.1 MiB for each thousand. A kilobyte kept of each request would be seen here.
    """
    gateway = make_gateway(QUEUE_LIMIT="10000").start()
    client, processes = Client(gateway), (gateway.pid, gateway.runner())
    client.wait([client.submit("plain") for _ in range(600)][-1])
    before = [resident_mib(pid) for pid in processes]
    client.wait([client.submit("plain") for _ in range(700)][-1])
    growth = [resident_mib(pid) - old for pid, old in zip(processes, before, strict=True)]
    assert growth[0] < 2.5
    assert growth[1] < 0.02 * before[1]
