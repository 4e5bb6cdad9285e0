"""The metrics of a server, in Prometheus' format."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from sdexport.server.jobs import DONE, FAILED, STEP, Job, JobEvent

if TYPE_CHECKING:
    from sdexport.server.image_service import ImageService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ServerMetrics:
    """Counts what a server does; hears of its jobs as JobObserver."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, files; on Linux
        PlatformCollector(registry=self.registry)
        self._requests = self._counter("http_requests", "Requests", "method", "route", "status")
        self._request_seconds = self._histogram("http_request_seconds", "Of a request", "route")
        self._jobs = self._counter("jobs", "Jobs that ended", "model", "status")
        self._failures = self._counter("job_failures", "Jobs that failed", "type")
        self._images = self._counter("images", "Images generated", "model")
        self._wait = self._histogram("queue_wait_seconds", "Before a job runs")
        self._job_seconds = self._histogram("job_seconds", "From arrival to end", "model")
        self._stages = self._histogram("stage_seconds", "Of a stage of a batch", "stage")
        self._steps = self._histogram("step_seconds", "Of a step of a batch")
        self._batch = self._histogram(
            "batch_images", "Images generated together", buckets=(1, 2, 3, 4, 6, 8, 12, 16)
        )

    def watch(self, service: ImageService) -> None:
        """Show the state of a service."""
        for name, text, function in (
            ("queue_length", "Jobs that wait", lambda: service.queue.waiting),
            ("jobs_running", "Jobs that run", lambda: service.queue.running),
            (
                "models_open",
                "Models in memory",
                lambda: sum(model.is_open for model in service.models.models),
            ),
            ("ready", "Whether the server is ready", lambda: float(service.is_ready)),
        ):
            gauge = Gauge(f"sdexport_{name}", text, registry=self.registry)
            gauge.set_function(function)

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = method if method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def queued(self, job: Job) -> None: ...

    def batch_started(self, jobs: Sequence[Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            self._wait.observe(now - job.created)
        self._batch.observe(sum(job.count for job in jobs))
        jobs[0].listen(_StepTimer(self._steps))

    def ended(self, job: Job) -> None:
        model = job.request.model or ""
        self._jobs.labels(model, job.status).inc()
        self._job_seconds.labels(model).observe(time.monotonic() - job.created)
        if job.status == DONE:
            self._images.labels(model).inc(job.count)
            for stage, seconds in job.seconds.items():
                self._stages.labels(stage).observe(seconds)
        elif job.status == FAILED:
            reason = getattr(job.error, "reason", "") or type(job.error).__name__
            self._failures.labels(reason).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sdexport_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        return Histogram(
            f"sdexport_{name}", text, labels, registry=self.registry, buckets=tuple(buckets)
        )


class _StepTimer:
    """Observes the time from each step to the next."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._last: float | None = None

    def __call__(self, event: JobEvent) -> None:
        now = time.perf_counter()
        if event.kind == STEP and self._last is not None:
            self._histogram.observe(now - self._last)
        self._last = now
