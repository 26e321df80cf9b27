"""Prometheus metrics. No label ever holds a prompt, an id, or anything else a caller chooses.

Every label has a fixed set of values, and all of them are there from the start: a series that
only appears with its first event hides that event from `rate()`.
"""

import itertools
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pipelines.types import Acceleration, Model, Precision, Stage
from pipelines.verdicts import Reason
from server.catalogue import CATALOGUE
from server.clock import Clock
from server.jobs import Job, Priority, app_id_of
from server.store.backlog import Backlog

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300)
"""Seconds: from a tiny model's image to a slow card's."""

OUTCOMES = {200: "ok", 422: "invalid", 499: "cancelled", 504: "timed_out"}
OTHER_OUTCOME = "failed"
PHASES = ("queued", "running")
WEBHOOK_RESULTS = ("delivered", "failed", "abandoned")
FLASH_WORDS = ("no", "yes")
TIMED_STAGES = (Stage.ENCODE.value, Stage.DECODE.value)


class Metrics:
    """Everything that is counted, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, clock: Clock, backlog: Backlog) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        self.oldest_wait_seconds = 0.0
        self._wait = self._histogram("queue_wait_seconds", "Time from acceptance to start")
        self._duration = self._histogram(
            "request_duration_seconds", "Time from acceptance to outcome", "app", "outcome"
        )
        self._stage = self._histogram("stage_seconds", "Time of encoding or decoding", "stage")
        self._step = self._histogram("step_seconds", "Time of one denoising step")
        self._load = self._histogram("model_load_seconds", "Time to load the model")
        self._switches = self._counter(
            "model_switches", "Times that a runner was given another model, by which", "model"
        )
        self._load_failures = self._counter(
            "model_load_failures", "Times that a model could not be loaded", "model"
        )
        self._jobs = self._counter("jobs", "Completed requests", "outcome")
        self._images = self._counter(
            "images", "Images made, by how", "acceleration", "precision", "flash"
        )
        self._verdicts = self._counter(
            "safety_verdicts", "Images by what the safety check said of them", "reason"
        )
        self._lost = self._counter("attempts_lost", "Attempts that ended without an outcome")
        self._cancelled = self._counter("cancelled", "Cancelled requests", "phase")
        self._webhooks = self._counter("webhook_attempts", "Webhook deliveries", "result")
        self._missing = self._counter("files_missing", "Stored files gone from the disk")
        self._up = Gauge(
            "flux2_worker_up",
            "Whether the runner can make an image",
            ["worker"],
            registry=self.registry,
        )
        self.registry.register(_BacklogCollector(self, backlog))
        self._begin_at_zero()

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def started(self, job: Job) -> None:
        """Note how long a claimed job waited."""
        self._wait.observe(max(0.0, (job.started_at or 0.0) - job.created_at))

    def completed(self, job: Job) -> None:
        """Note a job's outcome."""
        if job.outcome is None or job.completed_at is None:
            return
        outcome = outcome_word(job.outcome.http_status)
        self._jobs.labels(outcome).inc()
        self._duration.labels(job.app_id, outcome).observe(job.completed_at - job.created_at)
        if outcome == "cancelled":
            self._cancelled.labels("running" if job.started_at else "queued").inc()

    def stage(self, stage: Stage, seconds: float) -> None:
        """Note the time of a stage; of denoising, of one step."""
        if stage is Stage.DENOISE:
            self._step.observe(seconds)
        else:
            self._stage.labels(stage.value).observe(seconds)

    def applied(self, applied: Mapping[str, str], images: int) -> None:
        """Note how so many images were made: what `pipelines.types.Pipeline.describe` tells."""
        flash = FLASH_WORDS[applied["lora"] != "none"]
        self._images.labels(applied["acceleration"], applied["precision"], flash).inc(images)

    def verdict(self, reason: Reason) -> None:
        """Note what was said of an image before it left, or did not."""
        self._verdicts.labels(reason.value).inc()

    def attempt_lost(self) -> None:
        """Note an attempt whose runner was lost."""
        self._lost.inc()

    def runner(self, name: str, *, up: bool, load_seconds: float | None = None) -> None:
        """Note that a runner became able or unable to make images."""
        self._up.labels(name).set(up)
        if load_seconds is not None:
            self._load.observe(load_seconds)

    def switched(self, model: Model) -> None:
        """Note that a runner gives up its model for this one."""
        self._switches.labels(model.value).inc()

    def load_failed(self, model: Model) -> None:
        """Note that a model could not be loaded."""
        self._load_failures.labels(model.value).inc()

    def webhook(self, result: str) -> None:
        """Note a delivery attempt: `delivered`, `failed` or `abandoned`."""
        self._webhooks.labels(result).inc()

    def file_missing(self) -> None:
        """Note that a stored file is not where its record says."""
        self._missing.inc()

    def _begin_at_zero(self) -> None:
        outcomes = (*OUTCOMES.values(), OTHER_OUTCOME)
        for outcome in outcomes:
            self._jobs.labels(outcome)
            for app in catalogue_apps():
                self._duration.labels(app, outcome)
        for labels in itertools.product(Acceleration, Precision, FLASH_WORDS):
            self._images.labels(*map(str, labels))
        for family, values in (
            (self._cancelled, PHASES),
            (self._webhooks, WEBHOOK_RESULTS),
            (self._switches, tuple(map(str, Model))),
            (self._load_failures, tuple(map(str, Model))),
            (self._verdicts, tuple(map(str, Reason))),
            (self._stage, TIMED_STAGES),
        ):
            for value in values:
                family.labels(value)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"flux2_{name}", text, labels, registry=self.registry, buckets=BUCKETS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"flux2_{name}", text, labels, registry=self.registry)


class _BacklogCollector(Collector):
    """The queue's depth, read when it is asked for."""

    def __init__(self, metrics: Metrics, backlog: Backlog) -> None:
        self._metrics = metrics
        self._backlog = backlog

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges as they are now."""
        depth = GaugeMetricFamily(
            "flux2_queue_depth", "Requests that wait", labels=["app", "priority"]
        )
        counts = self._backlog.count_by_app()
        # An application that a newer version no longer has may still wait in the database.
        apps = {*catalogue_apps(), *(app for app, _ in counts)}
        for app, priority in itertools.product(sorted(apps), Priority):
            depth.add_metric([app, priority.name.lower()], counts.get((app, priority), 0))
        yield depth
        yield GaugeMetricFamily(
            "flux2_queue_running", "Requests that run", value=self._backlog.in_progress
        )
        yield GaugeMetricFamily(
            "flux2_queue_oldest_wait_seconds",
            "How long the request that waits longest has waited",
            value=self._metrics.oldest_wait_seconds,
        )


def outcome_word(http_status: int) -> str:
    """Name an outcome in one of a few words."""
    return OUTCOMES.get(http_status, OTHER_OUTCOME)


def catalogue_apps() -> list[str]:
    """Return the applications that the catalogue's endpoints belong to."""
    return sorted({app_id_of(endpoint_id) for endpoint_id in CATALOGUE})
