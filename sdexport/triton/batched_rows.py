"""Rows of requests to Triton's pipeline, which run together where that changes no image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from sdexport.engines.errors import EngineError, SDExportError
from sdexport.engines.messages import one_line
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.pipeline import Pipeline
from sdexport.server.batching import batch_key, merged_arguments, part_of
from sdexport.server.job_warnings import kept_warnings, warnings_of
from sdexport.server.jobs import Job
from sdexport.server.prompt_length import limit_texts
from sdexport.server.server_errors import JobCancelledError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """An image of a request: its job, and whether the client has cancelled the request."""

    job: Job
    is_cancelled: Callable[[], bool]


class _AllOverError(Exception):
    """Every row of the call was cancelled."""


def run_rows(rows: Sequence[Row], pipeline: Pipeline) -> None:
    """Generate the images of rows; each job is over afterwards."""
    tokenizers = pipeline.text_encoders.tokenizers.values()
    groups: dict[Hashable, list[Row]] = {}
    for place, row in enumerate(rows):
        key = batch_key(row.job.request, row.job.count, tokenizers)
        groups.setdefault(("alone", place) if key is None else ("together", key), []).append(row)
    for group in groups.values():
        _run(group, pipeline)


def _run(rows: Sequence[Row], pipeline: Pipeline) -> None:
    """Run rows as one call; if it fails, each alone, as one of them may be the reason."""
    jobs = [row.job for row in rows]
    try:
        _check_cancelled(rows)
        arguments = merged_arguments(jobs)
        limit_texts(arguments, pipeline.text_encoders)
        with kept_warnings() as records:
            result = pipeline(**arguments, on_step=lambda step: _after_step(rows, step))
        for job in jobs:
            part = part_of(result, jobs, job)
            job.warnings = warnings_of(job, records, pipeline, is_alone=len(jobs) == 1)
            job.succeed(part.images, part.parameters, result.seconds, part.flagged)
    except _AllOverError:
        return
    except Exception as error:  # noqa: BLE001  other requests are answered
        if len(rows) > 1:
            _log.info("a batch of %d images failed: %s", len(rows), one_line(error, 300))
            for row in rows:
                if not row.job.is_over:
                    _run([row], pipeline)
            return
        jobs[0].fail(_as_ours(error))


def _after_step(rows: Sequence[Row], step: DenoiseStep) -> None:
    _check_cancelled(rows)


def _check_cancelled(rows: Sequence[Row]) -> None:
    """Cancel the jobs of requests that their clients have cancelled.

    Raises: _AllOverError: none is left.
    """
    for row in rows:
        if not row.job.is_over and row.is_cancelled():
            row.job.cancel(JobCancelledError("the client cancelled the request"))
    if all(row.job.is_over for row in rows):
        raise _AllOverError


def _as_ours(error: Exception) -> SDExportError:
    """The error as a job keeps it; one that is a bug is logged with its traceback."""
    if isinstance(error, SDExportError):
        return error
    if isinstance(error, (OSError, MemoryError)):
        return EngineError(one_line(error))
    _log.error("%s", one_line(error, 1000), exc_info=error)
    return EngineError(f"this is a bug in sdexport: {type(error).__name__}: {one_line(error, 300)}")
