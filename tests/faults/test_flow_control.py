"""What callers and operators may ask of the queue, on a real server."""

import json
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.faults.conftest import MakeGateway
from tests.faults.gateway import Client, Gateway, wait_until
from tests.faults.rows import files_on_disk, rows

WAIT_SECONDS = 20


def file_of(result: httpx2.Response) -> str:
    """Return the path of a result's first image."""
    return httpx2.URL(result.json()["images"][0]["url"]).path


@pytest.fixture
def held(make_gateway: MakeGateway) -> Gateway:
    """Return a gateway whose queue stands still until SIGUSR1."""
    return make_gateway(START_MODE="hold").start()


def test_hold_until_the_operator_says_so(held: Gateway) -> None:
    """Requests are kept and ready says why; one SIGUSR1 runs the queue, another holds it again."""
    client = Client(held)
    first = client.submit("plain")
    answer = client.ready()
    assert (answer.status_code, answer.json()["reason"]) == (
        503,
        "held: the queue runs after SIGUSR1",
    )
    assert client.status(first) == "IN_QUEUE"
    os.kill(held.pid, signal.SIGUSR1)
    assert client.wait(first).status_code == 200
    assert client.ready().status_code == 200
    os.kill(held.pid, signal.SIGUSR1)
    held.wait_line("the queue is held")
    assert client.status(client.submit("plain")) == "IN_QUEUE"


def test_low_priority_runs_after_normal(held: Gateway) -> None:
    """What is urgent goes first, in order; what is low after it, in order."""
    client = Client(held)
    low = [client.submit("plain", headers={"x-fal-queue-priority": "low"}) for _ in range(2)]
    normal = [client.submit("plain") for _ in range(2)]
    order = [*normal, *low]
    places = [client.get(name, "/status").json()["queue_position"] for name in order]
    assert places == [0, 1, 2, 3]
    os.kill(held.pid, signal.SIGUSR1)
    for request_id in order:
        assert client.wait(request_id).status_code == 200
    started = rows(held.data_dir, "SELECT request_id FROM jobs ORDER BY started_at")
    assert [row["request_id"] for row in started] == order


def test_the_time_to_start_has_an_end(gateway: Gateway, client: Client) -> None:
    """What has not begun by then is 504 with fal's headers; what has begun is not touched."""
    running = client.submit("hold", headers={"x-fal-request-timeout": "0.5"})
    client.wait_running(running)
    started = time.monotonic()
    late = client.submit("plain", headers={"x-fal-request-timeout": "0.5"})
    patient = client.submit("plain", headers={"x-fal-request-timeout": "1000"})
    answer = client.wait(late)
    assert 0.4 < time.monotonic() - started < 5.0
    assert answer.status_code == 504
    assert answer.json() == {"detail": "Request timed out", "error_type": "request_timeout"}
    assert answer.headers["x-fal-request-timeout-type"] == "user"
    assert answer.headers["x-fal-error-type"] == "request_timeout"
    assert client.status(running) == "IN_PROGRESS"
    client.cancel(running)
    assert client.wait(patient).status_code == 200
    assert gateway.count_lines('"http_status": 504') == 1


def test_a_time_that_cannot_be_read_is_refused(client: Client) -> None:
    """It is 400 `bad_request`, and nothing is queued."""
    for text in ("soon", "0.1", "-1", "nan", "inf"):
        answer = client.post("plain", headers={"x-fal-request-timeout": text})
        assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request"), text
    assert client.ready().json()["queue"] == {"IN_QUEUE": 0, "IN_PROGRESS": 0}


def test_a_caller_may_refuse_a_long_queue(held: Gateway) -> None:
    """`fal_max_queue_length` counts those that wait: more of them are 429."""
    client = Client(held)
    for _ in range(3):
        client.submit("plain")
    refused = client.post("plain", params={"fal_max_queue_length": "2"})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert client.post("plain", params={"fal_max_queue_length": "3"}).status_code == 200


def test_the_queue_has_a_limit(make_gateway: MakeGateway) -> None:
    """Past the operator's limit requests are 429 with Retry-After, and accepted again below it."""
    gateway = make_gateway(START_MODE="hold", QUEUE_LIMIT="2").start()
    client = Client(gateway)
    accepted = [client.submit("plain") for _ in range(2)]
    refused = client.post("plain")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["x-fal-needs-retry"] == "1"
    client.cancel(accepted[0])
    accepted.append(client.submit("plain"))
    assert len(rows(gateway.data_dir, "SELECT 1 FROM jobs")) == 3


def test_two_runners_share_one_queue(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """Two jobs run at once; one runner's death leaves the server ready and costs one attempt."""
    gateway = make_gateway(DEVICES="cpu,cpu").start()
    gateway.wait_line('"runner ready"', skip=1)
    client, gate = Client(gateway), tmp_path / "gate"
    held = [client.submit(f"hold {gate}") for _ in range(2)]
    behind = [client.submit("plain") for _ in range(20)]
    for request_id in held:
        client.wait_running(request_id)
    assert client.ready().json()["queue"] == {"IN_QUEUE": 20, "IN_PROGRESS": 2}
    assert len(gateway.runners()) == 2
    os.kill(gateway.runners()[0], signal.SIGKILL)
    gateway.wait_line('"the runner died"')
    assert client.ready().status_code == 200
    gate.touch()
    for request_id in held + behind:
        assert client.wait(request_id).status_code == 200
    found = rows(gateway.data_dir, "SELECT sum(attempts) AS tries, count(*) AS jobs FROM jobs")
    assert found == [{"tries": 23, "jobs": 22}]


def test_a_payload_that_is_not_kept(make_gateway: MakeGateway) -> None:
    """With X-Fal-Store-IO: 0 result, files and prompt are erased soon, from the disk too."""
    gateway = make_gateway(SYNC_RESULT_SECONDS="0.5", SWEEP_SECONDS="0.1").start()
    client = Client(gateway)
    kept = client.submit("plain")
    secret = client.submit("plain very-secret-words", headers={"x-fal-store-io": "0"})
    path = file_of(client.wait(secret))
    assert client.wait(kept).status_code == 200
    wait_until(lambda: client.get(secret).status_code == 404, WAIT_SECONDS, "it is kept")
    wait_until(lambda: client.http.get(path).status_code == 404, WAIT_SECONDS, "it is kept")
    wait_until(lambda: len(files_on_disk(gateway.data_dir)) == 1, WAIT_SECONDS, "it is kept")

    def is_erased() -> bool:
        database = gateway.data_dir.glob("queue.sqlite3*")
        return not any(b"very-secret-words" in path.read_bytes() for path in database)

    wait_until(is_erased, WAIT_SECONDS, "the prompt is still on the disk")
    assert client.get(kept).status_code == 200


@pytest.mark.parametrize(("file_seconds", "result_seconds"), [(0.5, 1000), (1000, 0.5)])
def test_files_have_a_life_of_their_own(
    make_gateway: MakeGateway, file_seconds: float, result_seconds: float
) -> None:
    """The caller's wish ends a file before its result, or keeps it after."""
    gateway = make_gateway(RESULT_SECONDS=str(result_seconds), SWEEP_SECONDS="0.1").start()
    client = Client(gateway)
    wish = json.dumps({"expiration_duration_seconds": file_seconds})
    request_id = client.submit("plain", headers={"x-fal-object-lifecycle-preference": wish})
    path = file_of(client.wait(request_id))
    gone, stays = (
        (path, f"/queue/fal-ai/flux-2/requests/{request_id}")
        if file_seconds < result_seconds
        else (f"/queue/fal-ai/flux-2/requests/{request_id}", path)
    )
    wait_until(lambda: client.http.get(gone).status_code == 404, WAIT_SECONDS, "it is kept")
    assert client.http.get(stays).status_code == 200
    wait_until(
        lambda: len(files_on_disk(gateway.data_dir)) == (stays == path), WAIT_SECONDS, "file"
    )
    gateway.stop()
    gateway.start()
    assert Client(gateway).http.get(stays).status_code == 200
