"""OpenTelemetry traces of jobs, if the library is installed and set up.

Each job is a span, with a span for each stage in it; it belongs to the trace that the request's
header `traceparent` names. Spans are exported by the SDK, which OpenTelemetry's environment
variables or `opentelemetry-instrument` set up.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdexport.server.jobs import DONE, Job

_NANO = 10**9


class JobTracing:
    """Makes a span of each job; hears of jobs as JobObserver."""

    def __init__(self) -> None:
        from opentelemetry import trace

        self._trace = trace
        self._tracer = trace.get_tracer("sdexport.server")
        self._spans: dict[str, tuple[Any, int]] = {}

    def queued(self, job: Job) -> None:
        arguments = job.request.arguments
        span = self._tracer.start_span(
            "sdexport.job",
            attributes={
                "sdexport.job": job.id,
                "sdexport.model": job.request.model or "",
                "sdexport.images": job.count,
                "sdexport.width": int(arguments.get("width", 0)),
                "sdexport.height": int(arguments.get("height", 0)),
                "sdexport.request_id": job.request_id,
            },
        )
        self._spans[job.id] = span, time.time_ns()

    def batch_started(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.id in self._spans:
                self._spans[job.id][0].add_event("started", {"sdexport.batch": len(jobs)})

    def ended(self, job: Job) -> None:
        span, _ = self._spans.pop(job.id, (None, 0))
        if span is None:
            return
        span.set_attribute("sdexport.status", job.status)
        if job.status == DONE:
            self._stages(span, job.seconds)
        elif job.error is not None:
            status = self._trace.Status(self._trace.StatusCode.ERROR, type(job.error).__name__)
            span.set_status(status)
        span.end()

    def _stages(self, parent: Any, seconds: Mapping[str, float]) -> None:
        """A span for each stage; the last one has just ended."""
        context = self._trace.set_span_in_context(parent)
        at = time.time_ns() - round(sum(seconds.values()) * _NANO)
        for stage, taken in seconds.items():
            span = self._tracer.start_span(f"sdexport.{stage}", context, start_time=at)
            at += round(taken * _NANO)
            span.end(at)


class Observers:
    """Tells several observers of jobs."""

    def __init__(self, observers: Iterable[Any]) -> None:
        self._observers = list(observers)

    def queued(self, job: Job) -> None:
        for each in self._observers:
            each.queued(job)

    def batch_started(self, jobs: Sequence[Job]) -> None:
        for each in self._observers:
            each.batch_started(jobs)

    def ended(self, job: Job) -> None:
        for each in self._observers:
            each.ended(job)


def observers_of(metrics: Any) -> Any:
    """The observers of a server: metrics, and traces if OpenTelemetry's SDK is set up."""
    try:
        tracing = JobTracing()
    except ImportError:
        return metrics
    return Observers([metrics, tracing])


def join_trace(headers: Mapping[str, str]) -> None:
    """Make the trace of a request's headers (traceparent) the present one of this task."""
    if "traceparent" not in headers:
        return
    try:
        from opentelemetry import context, propagate
    except ImportError:
        return
    context.attach(propagate.extract(headers))
