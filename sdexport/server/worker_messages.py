"""What a queue and the workers that run its batches in other processes send each other.

Everything can be pickled. Only processes of one server exchange it: a pickle of a stranger's would
run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from sdexport.engines.errors import SDExportError
from sdexport.runtime.images.parameters import Parameters
from sdexport.server.image_request import ImageRequest
from sdexport.server.jobs import Job


@dataclass(frozen=True)
class SentJob:
    """What a worker must know of a job."""

    id: str
    request: ImageRequest
    count: int
    previews: bool
    request_id: str

    @classmethod
    def of(cls, job: Job) -> SentJob:
        """The job as it is sent."""
        return cls(job.id, job.request, job.count, job.previews, job.request_id)

    def received(self) -> Job:
        """A job that stands for it in the worker; its deadline is the queue's to keep."""
        timeout = float("inf")
        job = Job(
            *(self.request, self.count),
            previews=self.previews,
            timeout=timeout,
            request_id=self.request_id,
        )
        job.id = self.id
        return job


@dataclass(frozen=True)
class WorkerReady:
    """A worker is free and waits for a batch.

    worker: an id of the worker. models: names of those that it has open.
    """

    worker: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepDone:
    """A step of a job is done; place: of the job in its batch."""

    place: int
    step: int
    steps: int
    timestep: float
    preview: Image.Image | None = None


@dataclass(frozen=True)
class JobEnded:
    """A job is done, or failed with an error; place: of the job in its batch."""

    place: int
    images: list[Image.Image] = field(default_factory=list)
    parameters: list[Parameters] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    flagged: list[bool] | None = None
    warnings: list[str] = field(default_factory=list)
    error: SDExportError | None = None

    @classmethod
    def of(cls, job: Job, place: int) -> JobEnded:
        """The end of a job of a worker."""
        return cls(
            *(place, job.images, job.parameters, dict(job.seconds), job.flagged),
            *(list(job.warnings), job.error),
        )

    def apply(self, job: Job) -> None:
        """End the job of the queue as that of the worker ended."""
        job.warnings = self.warnings
        if self.error is not None:
            job.fail(self.error)
        else:
            job.succeed(self.images, self.parameters, self.seconds, self.flagged)


Message = WorkerReady | StepDone | JobEnded
