"""Metrics of a running server, scraped and parsed as Prometheus does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import StartServer
from tests.contract.conftest import Api, connect, poll_until
from tests.contract.fault_server import ENDPOINT, INSTANT, held, start_fault_server

KEY = "local:secret"

LABELS = {
    "app": {
        f"fal-ai/flux-2{rest}"
        for rest in ("", "-dev", "-flex", "-klein", "-lora-gallery", "-max", "-pro")
    },
    "priority": {"normal", "low"},
    "outcome": {"ok", "invalid", "cancelled", "timed_out", "failed"},
    "phase": {"queued", "running"},
    "stage": {"encode", "decode"},
    "result": {"delivered", "failed", "abandoned"},
    "worker": {"0"},
    "acceleration": {"none", "regular", "high"},
    "precision": {"float32", "bfloat16", "fp8", "int8"},
    "flash": {"no", "yes"},
    "model": {"dev", "klein-4b", "klein-9b", "klein-4b-base", "klein-9b-base"},
    "reason": {"unchecked", "ok", "nsfw", "ok_second_look", "nsfw_second_look"},
}
"""Every label there is, and every value it may have."""

NAMES = {
    "flux2_queue_depth",
    "flux2_queue_oldest_wait_seconds",
    "flux2_queue_running",
    "flux2_queue_wait_seconds",
    "flux2_request_duration_seconds",
    "flux2_stage_seconds",
    "flux2_step_seconds",
    "flux2_jobs",
    "flux2_images",
    "flux2_safety_verdicts",
    "flux2_cancelled",
    "flux2_webhook_attempts",
    "flux2_worker_up",
    "flux2_model_load_seconds",
    "flux2_model_switches",
    "flux2_model_load_failures",
}
"""What dashboards and alerts are built on; there may be more."""


class Scrape:
    """One look at `/metrics`."""

    def __init__(self, box: Api) -> None:
        answer = box.http.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        self.families = list(text_string_to_metric_families(answer.text))

    def value(self, name: str, **labels: str) -> float:
        """Return one sample."""
        (value,) = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        return float(value)


@pytest.fixture(scope="module")
def box(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return calls, with the key, on a server that wants one."""
    data_dir = tmp_path_factory.mktemp("data")
    server = start_fault_server(start_server, data_dir, FLUX2_API_KEY=KEY)
    with connect(server, authorization=f"Key {KEY}") as http:
        yield Api(http)
    assert server.stop() == 0


def test_a_life_in_numbers(box: Api) -> None:
    """Requests of every outcome move the numbers that they should, and no others."""
    before = Scrape(box)
    running = box.submit(ENDPOINT, held())
    box.wait(running, "IN_PROGRESS")
    queued = [box.submit(f"{ENDPOINT}/flash", INSTANT) for _ in range(2)]
    low = box.http.post(f"/queue/{ENDPOINT}", json=INSTANT, headers={"x-fal-queue-priority": "low"})
    assert low.status_code == 200
    during = Scrape(box)
    assert during.value("flux2_queue_running") == 1
    assert during.value("flux2_queue_depth", app=ENDPOINT, priority="normal") == 2
    assert during.value("flux2_queue_depth", app=ENDPOINT, priority="low") == 1
    oldest = during.value("flux2_queue_oldest_wait_seconds")
    assert poll_until(
        lambda: Scrape(box).value("flux2_queue_oldest_wait_seconds") > oldest, "it waits on"
    )
    box.cancel(queued[0])
    box.cancel(running)
    invalid = box.submit("fal-ai/flux-2-flex", {**INSTANT, "num_inference_steps": 99})
    failing = box.submit("fal-ai/flux-2-dev", {**INSTANT, "prompt": "error"})
    for kept in (*queued, running, invalid, failing):
        box.wait(kept)
    box.wait(low.json()["status_url"].removesuffix("/status"))
    after = Scrape(box)

    def added(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    counts = {word: added("flux2_jobs_total", outcome=word) for word in LABELS["outcome"]}
    assert counts == {"ok": 2, "cancelled": 2, "invalid": 1, "failed": 1, "timed_out": 0}
    assert added("flux2_cancelled_total", phase="queued") == 1
    assert added("flux2_cancelled_total", phase="running") == 1
    assert added("flux2_queue_wait_seconds_count") == 5
    assert added("flux2_stage_seconds_count", stage="decode") == 2
    assert added("flux2_step_seconds_count") >= 1
    how = {"acceleration": "regular", "precision": "float32", "flash": "no"}
    assert added("flux2_images_total", **how) == 2
    duration = "flux2_request_duration_seconds_count"
    assert added(duration, app=ENDPOINT, outcome="ok") == 2
    assert added(duration, app="fal-ai/flux-2-flex", outcome="invalid") == 1
    assert added(duration, app="fal-ai/flux-2-dev", outcome="failed") == 1
    assert after.value("flux2_queue_depth", app=ENDPOINT, priority="normal") == 0
    assert after.value("flux2_queue_running") == 0
    assert after.value("flux2_queue_oldest_wait_seconds") == 0
    assert after.value("flux2_worker_up", worker="0") == 1
    assert after.value("flux2_model_load_seconds_count") == 1


def test_names_and_labels(box: Api) -> None:
    """The documented families are there, and no label or value of one is anybody else's."""
    box.wait(box.submit(ENDPOINT, {**INSTANT, "prompt": "SECRET"}))
    box.http.get("/queue/SECRET/SECRET/requests/SECRET/status")
    box.http.post("/queue/SECRET/SECRET", json={})
    families = Scrape(box).families
    assert {family.name for family in families} >= NAMES
    for family in families:
        assert family.name.startswith("flux2_")
        assert family.documentation
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert label == "le" or value in LABELS[label]


def test_a_key_is_needed_where_one_is_set(box: Api) -> None:
    """Prometheus sends it as a bearer token, its usual way, or as `Key` like everybody."""
    for authorization, status in (
        (f"Bearer {KEY}", 200),
        (f"Key {KEY}", 200),
        ("Bearer wrong", 401),
        ("", 401),
    ):
        answer = box.http.get("/metrics", headers={"authorization": authorization})
        assert answer.status_code == status
        assert (b"flux2_" in answer.content) == (status == 200)


def test_a_runner_that_cannot_load_is_not_up(start_server: StartServer, tmp_path: Path) -> None:
    """The gauge is there from the start, at zero."""
    server = start_fault_server(start_server, tmp_path / "data", "missing", wait_ready=False)
    with connect(server) as http:
        scrape = Scrape(Api(http))
        assert scrape.value("flux2_worker_up", worker="0") == 0
        assert scrape.value("flux2_model_load_seconds_count") == 0
    assert server.stop() == 0
