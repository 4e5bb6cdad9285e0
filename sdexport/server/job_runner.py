"""Runs the jobs of a batch with their model, and ends each of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdexport.engines.errors import (
    CheckpointError,
    InvalidArgumentError,
    OutOfMemoryError,
    PackageError,
    SDExportError,
)
from sdexport.engines.messages import one_line
from sdexport.runtime.adapters.lora_tags import TAG
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.images.preview import linear_preview
from sdexport.runtime.pipeline import Pipeline
from sdexport.runtime.result import Result
from sdexport.server.batching import merged_arguments, part_of
from sdexport.server.job_warnings import kept_warnings, warnings_of
from sdexport.server.jobs import Job
from sdexport.server.model_store import ModelStore
from sdexport.server.prompt_length import limit_texts
from sdexport.server.registered_names import ADAPTERS
from sdexport.server.request_checks import adapter_folders, requested_size, texts_of
from sdexport.server.server_errors import ModelFailedError

_log = logging.getLogger(__name__)


class _AllOverError(Exception):
    """Every job of the batch was cancelled or is too late."""


class JobRunner:
    """Generates the images of jobs.

    Args:
      models: opens the pipelines.
    """

    def __init__(self, models: ModelStore) -> None:
        self._models = models

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Run compatible jobs together; each is over afterwards."""
        try:
            self._run(jobs)
        except _AllOverError:
            return
        except Exception as error:  # noqa: BLE001  the thread must go on
            if all(job.is_over for job in jobs):
                _log.info("a call that nobody waits for ended: %s", one_line(error, 300))
                return
            if len(jobs) == 1:
                _fail(jobs[0], error)
                return
            _log.info("a batch of %d jobs failed: %s", len(jobs), one_line(error, 300))
            for job in jobs:  # one of them may be the reason, or their number
                if not job.is_over:
                    self([job])

    def _run(self, jobs: Sequence[Job]) -> None:
        with kept_warnings() as records:
            request = jobs[0].request
            model = self._models.model(request.model)
            size = requested_size(request.arguments, model)
            count, adapters = sum(job.count for job in jobs), adapter_folders(request.arguments)
            pipeline = self._models.open(model, size, count, adapters, loras=request.loras)
            arguments = merged_arguments(jobs)
            limit_texts(arguments, pipeline.text_encoders)
            steps = _Steps(jobs, pipeline)
            result: Result = pipeline(**arguments, on_step=steps)
        for job in jobs:
            part = part_of(result, jobs, job)
            job.warnings = warnings_of(job, records, pipeline, is_alone=len(jobs) == 1)
            job.succeed(part.images, part.parameters, result.seconds, part.flagged)


class _Steps:
    """Tells jobs of their steps, and ends the call when all of them are over."""

    def __init__(self, jobs: Sequence[Job], pipeline: Pipeline) -> None:
        self._jobs, self._pipeline = jobs, pipeline
        self._first: int | None = None

    def __call__(self, step: DenoiseStep) -> None:
        if all(job.is_over for job in self._jobs):
            raise _AllOverError
        if self._first is None:  # an input image leaves out the first steps
            self._first = step.index
        done, steps = step.index - self._first + 1, step.count - self._first
        place = 0
        for job in self._jobs:
            preview = self._preview(step, place) if job.previews and not job.is_over else None
            job.note_step(done, steps, step.timestep, preview)
            place += job.count

    def _preview(self, step: DenoiseStep, place: int) -> Image.Image:
        """The clean image that a step predicts, one pixel for each latent cell if possible."""
        latents = step.pred_original_sample[place : place + 1]
        factors = self._pipeline.package.manifest.preview
        if factors is not None:
            return Image.fromarray(linear_preview(latents, factors)[0])
        return Image.fromarray(np.asarray(self._pipeline.decode(latents)[0]))


def _names_files(job: Job) -> bool:
    """Whether a request names LoRAs or adapters, which may not fit its model."""
    arguments = job.request.arguments
    texts = [*texts_of(arguments, "prompt"), *texts_of(arguments, "prompt_2")]
    return any(arguments.get(name) for name in ("loras", *ADAPTERS)) or any(map(TAG.search, texts))


def _fail(job: Job, error: Exception) -> None:
    """End a job with what clients may read; the log has the whole error."""
    if isinstance(error, InvalidArgumentError | OutOfMemoryError):
        job.fail(error)
        return
    if isinstance(error, CheckpointError | PackageError) and _names_files(job):
        _log.warning("job %s: %s", job.id, one_line(error, 1000))
        job.fail(InvalidArgumentError(str(error)))  # what it names does not fit the model
        return
    is_known = isinstance(error, SDExportError | OSError | MemoryError)
    _log.error(
        "job %s failed: %s", job.id, one_line(error, 1000), exc_info=None if is_known else error
    )
    name = type(error).__name__
    failed = ModelFailedError(
        f"generating failed ({name}); the server's log has the details of job {job.id}"
    )
    failed.reason = name
    job.fail(failed)
