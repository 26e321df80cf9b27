"""The end of the gateway, of any kind: F7 and F8 of the promises."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import MakeGateway
from tests.faults.gateway import Client, Gateway, marked, wait_until
from tests.faults.rows import row_of, rows

ORPHAN_SECONDS = 2.0
DRAIN_LIMIT_SECONDS = 35.0
DRAINS = 10
RESTARTS = 5
HURRY_SECONDS = 7.0
"""A second signal waits for nothing but the runner's own end, 5 seconds at most."""


@pytest.mark.parametrize("activity", ["idle", "hold", "spin", "seize"])
def test_a_dead_gateway_takes_its_runner_with_it(
    gateway: Gateway, client: Client, activity: str
) -> None:
    """F7: killed without a word, it leaves no process that holds the device, however busy."""
    pid = gateway.runner()
    if activity != "idle":
        client.wait_running(client.submit(activity))
    killed = time.monotonic()
    gateway.kill()
    wait_until(lambda: pid not in marked(gateway.mark), ORPHAN_SECONDS, "the runner is orphaned")
    assert time.monotonic() - killed < ORPHAN_SECONDS


def test_a_loading_runner_goes_too(make_gateway: MakeGateway) -> None:
    """F7: also when it has not come so far as to read anything."""
    gateway = make_gateway(PIPELINE_FACTORY="fault_pipelines:endless")
    gateway.start(until=None)
    pid = gateway.runner()
    gateway.kill()
    wait_until(lambda: pid not in marked(gateway.mark), ORPHAN_SECONDS, "the runner is orphaned")


def test_there_are_never_two_runners(gateway: Gateway) -> None:
    """F7: when the next gateway's runner is there, the last one's is not."""
    request_id = Client(gateway).submit("seize")
    for _ in range(RESTARTS):
        pid = gateway.runner()
        Client(gateway).wait_running(request_id)
        gateway.kill()
        gateway.spawn()
        successor = gateway.runner()
        assert pid not in marked(gateway.mark)
        assert successor != pid
        gateway.wait_line('"runner ready"')


def test_a_drain_at_any_moment_loses_and_charges_nothing(make_gateway: MakeGateway) -> None:
    """F8: ten stops at random moments of a working queue; every job ends at its first attempt."""
    gateway = make_gateway(DRAIN_SECONDS="30")
    dice = random.Random(8)
    accepted: list[str] = []
    for _ in range(DRAINS):
        gateway.start(until=None)
        client = Client(gateway)
        accepted += [client.submit("plain") for _ in range(10)]
        # The pause is the subject: a stop that comes at any time of loading or working.
        time.sleep(dice.uniform(0, 0.5))
        started = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - started < DRAIN_LIMIT_SECONDS
    gateway.start()
    client = Client(gateway)
    assert {client.wait(request_id).status_code for request_id in accepted} == {200}
    found = rows(gateway.data_dir, "SELECT DISTINCT attempts, runner_deaths FROM jobs")
    assert found == [{"attempts": 1, "runner_deaths": 0}]


def test_what_does_not_end_in_time_is_put_back(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """F8: past the drain time the running job stops at a step, uncharged, and is made later."""
    gateway = make_gateway(DRAIN_SECONDS="0.5").start()
    client, gate = Client(gateway), tmp_path / "gate"
    request_id = client.submit(f"hold {gate}")
    client.wait_running(request_id)
    started = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - started < HURRY_SECONDS
    row = row_of(gateway.data_dir, request_id)
    assert (row["status"], row["attempts"], row["runner_deaths"]) == ("IN_QUEUE", 0, 0)
    gate.touch()
    gateway.start()
    assert Client(gateway).wait(request_id).status_code == 200
    assert row_of(gateway.data_dir, request_id)["attempts"] == 1


def test_a_drain_lets_the_running_job_finish(gateway: Gateway, tmp_path: Path) -> None:
    """F8: while it does, ready is 503, new requests are kept, and none is begun."""
    client, gate = Client(gateway), tmp_path / "gate"
    running = client.submit(f"hold {gate}")
    client.wait_running(running)
    os.kill(gateway.pid, signal.SIGTERM)
    gateway.wait_line('"stopping"')
    answer = client.ready()
    assert answer.status_code == 503
    assert answer.json()["reason"] == "draining: the server is stopping"
    behind = client.submit("plain")
    gate.touch()
    assert gateway.wait() == 0
    assert row_of(gateway.data_dir, running)["http_status"] == 200
    assert row_of(gateway.data_dir, behind)["status"] == "IN_QUEUE"
    gateway.start()
    assert Client(gateway).wait(behind).status_code == 200


def test_a_second_signal_is_immediate_and_as_safe(gateway: Gateway) -> None:
    """F8: it does not wait for the running job, and puts it back without a charge."""
    client = Client(gateway)
    request_id = client.submit("hold")
    client.wait_running(request_id)
    os.kill(gateway.pid, signal.SIGTERM)
    gateway.wait_line('"stopping"')
    started = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - started < HURRY_SECONDS
    row = row_of(gateway.data_dir, request_id)
    assert (row["status"], row["attempts"]) == ("IN_QUEUE", 0)


@pytest.mark.parametrize("factory", ["endless", "missing"])
def test_a_stop_does_not_wait_for_a_load(make_gateway: MakeGateway, factory: str) -> None:
    """F8: a runner that loads, or waits for its next try, has no image worth waiting for."""
    gateway = make_gateway(PIPELINE_FACTORY=f"fault_pipelines:{factory}", DRAIN_SECONDS="30")
    gateway.start(until=None)
    client = Client(gateway)
    request_id = client.submit("plain")
    if factory == "endless":
        gateway.runner()
    else:
        gateway.wait_line('"no runner"')
    started = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - started < HURRY_SECONDS
    assert row_of(gateway.data_dir, request_id)["status"] == "IN_QUEUE"


def test_a_cancel_is_not_forgotten_in_a_crash(gateway: Gateway) -> None:
    """F9: asked to stop and then killed, the server does not begin the job anew."""
    client = Client(gateway)
    request_id = client.submit("spin")
    client.wait_running(request_id)
    assert client.cancel(request_id).status_code == 202
    gateway.kill()
    gateway.start()
    answer = Client(gateway).wait(request_id)
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (499, "client_cancelled")
