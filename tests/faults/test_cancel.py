"""Cancels at every moment of a job's life: F9 of the promises."""

import json
import random
import socket
import time
from pathlib import Path

import pytest

from tests.faults.conftest import MakeGateway
from tests.faults.fault_pipelines import GATED_STEPS
from tests.faults.gateway import ENDPOINT, Client, Gateway, wait_until
from tests.faults.rows import rows

RACES = 30
CANCEL_SECONDS = 1.0


def open_gates(folder: Path, steps: int) -> None:
    """Let a gated request take so many steps."""
    for step in range(1, steps + 1):
        (folder / str(step)).touch()


def count_steps(messages: list[str]) -> int:
    """Count the steps that a log tells of."""
    return sum("step" in message for message in messages)


def test_a_running_job_stops_at_the_step(gateway: Gateway, client: Client, tmp_path: Path) -> None:
    """Cancelled after any step it takes no other, ends as 499 in a second, and frees the runner."""
    pid = gateway.runner()
    for step in range(GATED_STEPS):
        open_gates(tmp_path, step)
        cancel_after(client, tmp_path, step)
        assert client.wait(client.submit("plain")).status_code == 200
    assert gateway.runner() == pid


def cancel_after(client: Client, gates: Path, step: int) -> None:
    """Cancel a gated request when it has taken so many steps, and see how it ends."""
    request_id = client.submit(f"gated {gates}")
    wait_until(
        lambda: (
            client.status(request_id) == "IN_PROGRESS"
            and count_steps(client.messages(request_id)) == step
        ),
        30,
        "it does not run",
    )
    started = time.monotonic()
    answer = client.cancel(request_id)
    assert (answer.status_code, answer.json()["status"]) == (202, "CANCELLATION_REQUESTED")
    result = client.wait(request_id)
    assert time.monotonic() - started < CANCEL_SECONDS
    assert (result.status_code, result.headers["x-fal-error-type"]) == (499, "client_cancelled")
    assert count_steps(client.messages(request_id)) == step


def test_a_queued_job_leaves_at_once(gateway: Gateway, client: Client) -> None:
    """It is COMPLETED with the cancel's answer, and what is behind it moves up."""
    running = client.submit("hold")
    client.wait_running(running)
    queued, behind = client.submit("plain"), client.submit("plain")
    answer = client.cancel(queued)
    assert (answer.status_code, answer.json()["status"]) == (200, "OK")
    assert client.status(queued) == "COMPLETED"
    assert client.get(queued).status_code == 499
    assert client.get(behind, "/status").json()["queue_position"] == 0
    again = client.cancel(queued)
    assert (again.status_code, again.json()["status"]) == (400, "ALREADY_COMPLETED")
    client.cancel(running)
    assert client.wait(behind).status_code == 200
    assert gateway.count_lines('"completed"') == 3


def test_a_race_with_the_end_has_one_outcome(client: Client) -> None:
    """Whoever comes first, the cancel's answer and the result agree, and stay what they are."""
    dice = random.Random(9)
    seen = set()
    for _ in range(RACES):
        request_id = client.submit("plain")
        # The pause is the subject: from before the claim to after the end.
        time.sleep(dice.uniform(0, 0.1))
        cancelled = client.cancel(request_id).status_code
        result = client.wait(request_id)
        possible = {200: {499}, 202: {499, 200}, 400: {200}}[cancelled]
        assert result.status_code in possible
        assert client.get(request_id).content == result.content
        seen.add((cancelled, result.status_code))
    assert len(seen) > 1


def ask_and_hang_up(gateway: Gateway, prompt: str, status: str) -> str:
    """Send a synchronous request and hang up once it has this status; return its id."""
    body = json.dumps({"prompt": prompt, "image_size": "square"})
    head = (
        f"POST /{ENDPOINT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall((head + body).encode("ascii"))

        def is_there() -> bool:
            row = newest(gateway)
            return (row["status"], prompt in str(row.get("body"))) == (status, True)

        wait_until(is_there, 30, f"not {status}")
    return str(newest(gateway)["request_id"])


def newest(gateway: Gateway) -> dict[str, object]:
    """Return the row of the request that was accepted last; it may still be on its way."""
    query = "SELECT * FROM jobs JOIN inputs USING (request_id) ORDER BY seq DESC LIMIT 1"
    found = rows(gateway.data_dir, query)
    return found[0] if found else {"status": None}


@pytest.mark.parametrize("setting", ["true", "false"])
def test_a_synchronous_caller_who_leaves(make_gateway: MakeGateway, setting: str) -> None:
    """A request that has not begun is cancelled when its caller leaves, if the setting says so."""
    gateway = make_gateway(CANCEL_ON_DISCONNECT=setting).start()
    client = Client(gateway)
    running = client.submit("hold")
    client.wait_running(running)
    request_id = ask_and_hang_up(gateway, "plain", "IN_QUEUE")
    if setting == "true":
        wait_until(lambda: newest(gateway)["http_status"] == 499, 30, "it was not cancelled")
    client.cancel(running)
    assert client.wait(request_id).status_code == (499 if setting == "true" else 200)


def test_a_synchronous_caller_who_leaves_late(gateway: Gateway, client: Client) -> None:
    """What runs already is finished and kept, and a queue request never minds who hangs up."""
    gate = gateway.data_dir.parent / "gate"
    request_id = ask_and_hang_up(gateway, f"hold {gate}", "IN_PROGRESS")
    queued = client.submit("plain")
    client.http.close()
    other = Client(gateway)
    gate.touch()
    assert other.wait(request_id).status_code == 200
    assert other.wait(queued).status_code == 200
