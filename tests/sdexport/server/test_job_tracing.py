"""A job is a span with its stages in it, in the trace of the request."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from sdexport.server.image_request import ImageRequest
from sdexport.server.job_tracing import JobTracing, join_trace
from sdexport.server.jobs import Job
from sdexport.server.server_errors import JobCancelledError


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: object) -> SpanExportResult:
        self.spans += spans  # type: ignore[arg-type, operator]
        return SpanExportResult.SUCCESS


def test_jobs_and_stages_are_spans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept, provider = Kept(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    tracing = JobTracing()
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    join_trace({"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
    job = Job(ImageRequest("demo", {"width": 64, "height": 32}), 2, request_id="r1")
    tracing.queued(job)
    tracing.batch_started([job])
    job.succeed([], [], {"encode": 0.25, "denoise": 0.5, "decode": 0.125})
    tracing.ended(job)
    *stages, whole = kept.spans
    assert [span.name for span in stages] == [
        "sdexport.encode",
        "sdexport.denoise",
        "sdexport.decode",
    ]
    assert whole.attributes is not None and whole.attributes["sdexport.width"] == 64
    assert whole.attributes["sdexport.status"] == "done"
    assert all(f"{span.context.trace_id:032x}" == trace_id for span in kept.spans if span.context)
    assert stages[1].end_time - stages[1].start_time == 5 * 10**8  # type: ignore[operator]
    failed = Job(ImageRequest("demo", {}), 1)
    tracing.queued(failed)
    failed.cancel(JobCancelledError("why"))
    tracing.ended(failed)
    assert not kept.spans[-1].status.is_ok
    assert kept.spans[-1].status.description == "JobCancelledError"
