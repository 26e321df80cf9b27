"""Metrics, read back by Prometheus' own parser: names, labels, and what moves them."""

from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.types import Stage
from pipelines.verdicts import Reason
from server import jobs
from server.catalogue import CATALOGUE
from server.jobs import Job, Outcome, Priority
from server.metrics import Metrics, catalogue_apps, outcome_word
from server.store.backlog import Backlog

NOW = 1000.0

FAMILIES = {
    "flux2_queue_depth": ("gauge", {"app", "priority"}),
    "flux2_queue_running": ("gauge", set()),
    "flux2_queue_oldest_wait_seconds": ("gauge", set()),
    "flux2_queue_wait_seconds": ("histogram", set()),
    "flux2_request_duration_seconds": ("histogram", {"app", "outcome"}),
    "flux2_stage_seconds": ("histogram", {"stage"}),
    "flux2_step_seconds": ("histogram", set()),
    "flux2_model_load_seconds": ("histogram", set()),
    "flux2_model_switches": ("counter", {"model"}),
    "flux2_model_load_failures": ("counter", {"model"}),
    "flux2_jobs": ("counter", {"outcome"}),
    "flux2_images": ("counter", {"acceleration", "precision", "flash"}),
    "flux2_safety_verdicts": ("counter", {"reason"}),
    "flux2_attempts_lost": ("counter", set()),
    "flux2_cancelled": ("counter", {"phase"}),
    "flux2_webhook_attempts": ("counter", {"result"}),
    "flux2_files_missing": ("counter", set()),
    "flux2_worker_up": ("gauge", {"worker"}),
}
"""Every family with its type and labels. Counters end in `_total` where they are read."""


class Gauged:
    """Metrics over a backlog, and what a scrape finds in them."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.metrics = Metrics(lambda: NOW, self.backlog)
        self._seq = 0

    def accept(self, **fields: Any) -> Job:
        """Put a new job into the backlog."""
        self._seq += 1
        values: dict[str, Any] = {
            "request_id": f"id-{self._seq}",
            "endpoint_id": "fal-ai/flux-2",
            "origin": "http://box",
            "input": "{}",
            "owner": "local",
            "created_at": NOW,
            "seq": self._seq,
        }
        job = Job(**{**values, **fields})
        self.backlog.follow(None, job)
        return job

    def start(self, job: Job, *, after_seconds: float) -> Job:
        """Claim a job so long after it was accepted."""
        running = jobs.claim(job, job.created_at + after_seconds)
        self.backlog.follow(job, running)
        self.metrics.started(running)
        return running

    def complete(self, job: Job, http_status: int, *, after_seconds: float = 1.0) -> None:
        """Give a job its outcome, so long after it was accepted."""
        outcome = Outcome(http_status=http_status, body="{}", keep_seconds=60.0)
        done = jobs.complete(job, outcome, job.created_at + after_seconds)
        self.backlog.follow(job, done)
        self.metrics.completed(done)

    def value(self, name: str, **labels: str) -> float:
        """Scrape, and return the sample of this name and exactly these labels."""
        for family in text_string_to_metric_families(self.metrics.render().decode()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        raise KeyError(name, labels)


@pytest.fixture
def gauged() -> Gauged:
    """Return metrics that nothing has moved yet."""
    return Gauged()


def label_names(labels: Mapping[str, str]) -> set[str]:
    """Return the names without a histogram's own `le`."""
    return set(labels) - {"le"}


def test_families_and_labels(gauged: Gauged) -> None:
    """Each has the documented name, type and labels; every series but `worker` exists at once."""
    gauged.metrics.runner("0", up=True)
    found = {
        family.name: (family.type, label_names(family.samples[0].labels))
        for family in text_string_to_metric_families(gauged.metrics.render().decode())
        if not family.name.endswith("_created")
    }
    assert found == FAMILIES


def test_everything_begins_at_zero(gauged: Gauged) -> None:
    """So that the first event of a kind is seen as one: no series appears with it."""
    names = ("", "-dev", "-flex", "-klein", "-lora-gallery", "-max", "-pro")
    assert catalogue_apps() == [f"fal-ai/flux-2{name}" for name in names]
    for app in catalogue_apps():
        for priority in ("normal", "low"):
            assert gauged.value("flux2_queue_depth", app=app, priority=priority) == 0
        name = "flux2_request_duration_seconds_count"
        assert gauged.value(name, app=app, outcome="ok") == 0
    for outcome in ("ok", "invalid", "cancelled", "timed_out", "failed"):
        assert gauged.value("flux2_jobs_total", outcome=outcome) == 0
    for phase in ("queued", "running"):
        assert gauged.value("flux2_cancelled_total", phase=phase) == 0
    for result in ("delivered", "failed", "abandoned"):
        assert gauged.value("flux2_webhook_attempts_total", result=result) == 0
    for stage in ("encode", "decode"):
        assert gauged.value("flux2_stage_seconds_count", stage=stage) == 0


def test_depth_follows_the_queue(gauged: Gauged) -> None:
    """Per application and priority: endpoints of one application count together."""
    gauged.accept(endpoint_id="fal-ai/flux-2/flash")
    first = gauged.accept()
    gauged.accept(priority=Priority.LOW)
    gauged.accept(endpoint_id="fal-ai/flux-2-flex")

    def depth(app: str, priority: str) -> float:
        return gauged.value("flux2_queue_depth", app=app, priority=priority)

    assert depth("fal-ai/flux-2", "normal") == 2
    assert depth("fal-ai/flux-2", "low") == 1
    assert depth("fal-ai/flux-2-flex", "normal") == 1
    assert gauged.value("flux2_queue_running") == 0
    gauged.start(first, after_seconds=2)
    assert depth("fal-ai/flux-2", "normal") == 1
    assert gauged.value("flux2_queue_running") == 1


def test_an_application_that_is_gone_is_still_counted(gauged: Gauged) -> None:
    """A queue written by a version that had more endpoints does not hide its jobs."""
    gauged.accept(endpoint_id="fal-ai/flux-1")
    assert gauged.value("flux2_queue_depth", app="fal-ai/flux-1", priority="normal") == 1


def test_wait_and_duration(gauged: Gauged) -> None:
    """Both count from acceptance, the wait to the start and the duration to the outcome."""
    running = gauged.start(gauged.accept(), after_seconds=2)
    gauged.complete(running, 200, after_seconds=7)
    assert gauged.value("flux2_queue_wait_seconds_sum") == 2
    assert gauged.value("flux2_queue_wait_seconds_count") == 1
    labels = {"app": "fal-ai/flux-2", "outcome": "ok"}
    assert gauged.value("flux2_request_duration_seconds_sum", **labels) == 7
    assert gauged.value("flux2_request_duration_seconds_bucket", le="10.0", **labels) == 1
    assert gauged.value("flux2_request_duration_seconds_bucket", le="5.0", **labels) == 0


@pytest.mark.parametrize(
    ("http_status", "outcome"),
    [
        (200, "ok"),
        (422, "invalid"),
        (499, "cancelled"),
        (504, "timed_out"),
        (500, "failed"),
        (503, "failed"),
        (404, "failed"),
    ],
)
def test_outcomes(gauged: Gauged, http_status: int, outcome: str) -> None:
    """A few words stand for all statuses."""
    assert outcome_word(http_status) == outcome
    gauged.complete(gauged.start(gauged.accept(), after_seconds=0), http_status)
    assert gauged.value("flux2_jobs_total", outcome=outcome) == 1


def test_cancelled_by_phase(gauged: Gauged) -> None:
    """Only a 499 counts, once, by whether it had begun."""
    gauged.complete(gauged.accept(), 499)
    gauged.complete(gauged.accept(), 499)
    gauged.complete(gauged.start(gauged.accept(), after_seconds=0), 499)
    gauged.complete(gauged.accept(), 504)
    assert gauged.value("flux2_cancelled_total", phase="queued") == 2
    assert gauged.value("flux2_cancelled_total", phase="running") == 1


def test_verdicts_by_reason(gauged: Gauged) -> None:
    """Every reason is there from the start, and each verdict counts once."""
    for reason in Reason:
        assert gauged.value("flux2_safety_verdicts_total", reason=reason.value) == 0
    gauged.metrics.verdict(Reason.NSFW)
    assert gauged.value("flux2_safety_verdicts_total", reason="nsfw") == 1


def test_a_job_without_an_outcome_counts_nothing(gauged: Gauged) -> None:
    """Asking too early must not invent one."""
    gauged.metrics.completed(gauged.accept())
    assert gauged.value("flux2_jobs_total", outcome="failed") == 0


def test_stages_and_steps(gauged: Gauged) -> None:
    """A denoising step is a step, everything else a stage."""
    gauged.metrics.stage(Stage.ENCODE, 0.5)
    gauged.metrics.stage(Stage.DENOISE, 0.25)
    gauged.metrics.stage(Stage.DENOISE, 0.25)
    gauged.metrics.stage(Stage.DECODE, 2.0)
    assert gauged.value("flux2_stage_seconds_sum", stage="encode") == 0.5
    assert gauged.value("flux2_stage_seconds_sum", stage="decode") == 2
    assert gauged.value("flux2_step_seconds_count") == 2
    assert gauged.value("flux2_step_seconds_sum") == 0.5


def test_runners(gauged: Gauged) -> None:
    """Up while it can make images; the time to load counts when it loaded."""
    gauged.metrics.runner("0", up=False)
    gauged.metrics.runner("1", up=True, load_seconds=12.0)
    assert gauged.value("flux2_worker_up", worker="0") == 0
    assert gauged.value("flux2_worker_up", worker="1") == 1
    assert gauged.value("flux2_model_load_seconds_sum") == 12
    gauged.metrics.runner("1", up=False)
    assert gauged.value("flux2_worker_up", worker="1") == 0
    assert gauged.value("flux2_model_load_seconds_count") == 1


def test_the_other_counters(gauged: Gauged) -> None:
    """Webhooks by result, lost attempts, missing files, and the oldest wait as it was set."""
    gauged.metrics.webhook("failed")
    gauged.metrics.webhook("failed")
    gauged.metrics.webhook("delivered")
    gauged.metrics.attempt_lost()
    gauged.metrics.file_missing()
    gauged.metrics.oldest_wait_seconds = 17.5
    assert gauged.value("flux2_webhook_attempts_total", result="failed") == 2
    assert gauged.value("flux2_webhook_attempts_total", result="delivered") == 1
    assert gauged.value("flux2_attempts_lost_total") == 1
    assert gauged.value("flux2_files_missing_total") == 1
    assert gauged.value("flux2_queue_oldest_wait_seconds") == 17.5


def test_nothing_of_a_caller_is_a_label(gauged: Gauged) -> None:
    """Whatever a request carries, the series are the same: their number stays bounded."""
    gauged.metrics.runner("0", up=True)

    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        text = gauged.metrics.render().decode()
        return {
            (sample.name, frozenset(sample.labels.items()))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = series()
    for number, endpoint_id in enumerate(CATALOGUE):
        job = gauged.accept(
            endpoint_id=endpoint_id,
            request_id=f"SECRET-{number}",
            origin="http://SECRET",
            input='{"prompt": "SECRET"}',
            webhook_url="http://SECRET/",
        )
        gauged.complete(gauged.start(job, after_seconds=1), 200 + number)
        gauged.accept(endpoint_id=endpoint_id)
    assert series() == before
    assert b"SECRET" not in gauged.metrics.render()
