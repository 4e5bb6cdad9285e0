"""Generates images for all APIs of a server: the models, the queue, and the jobs."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from typing import Any

from sdexport.engines.errors import InvalidArgumentError, SDExportError
from sdexport.runtime.schedulers.catalog import catalog
from sdexport.runtime.version import __version__
from sdexport.server.batch_engines import ClosableEngines, LocalEngine
from sdexport.server.batching import batch_key
from sdexport.server.image_request import ImageRequest
from sdexport.server.input_images import ImageBudget, RequestImages
from sdexport.server.job_events import events
from sdexport.server.job_queue import JobObserver, JobQueue
from sdexport.server.jobs import DONE, Job, JobEvent
from sdexport.server.model_store import Model, ModelStore
from sdexport.server.registered_names import RegisteredNames
from sdexport.server.request_checks import (
    adapter_folders,
    checked_arguments,
    input_images,
    output_size,
    public_text,
    requested_size,
)
from sdexport.server.request_context import CLIENT, RELEASE_BODY
from sdexport.server.server_settings import ServerSettings

_CANCELLING, _PAUSE = 5.0, 0.1
"""Seconds in which calls into an engine are cancelled at the end, and between two attempts."""
_FETCHING = 5.0
"""Seconds in which a client fetches the images of a job that is done, if the server is stopped."""


@functools.cache
def _schedulers() -> dict[str, Any]:
    """What is the same for every server."""
    listed = catalog()
    return {
        "version": __version__,
        "schedulers": [each["name"] for each in listed["schedulers"]],
        "scheduler_details": [
            {key: each[key] for key in ("name", "label", "schedules")}
            for each in listed["schedulers"]
        ],
        "schedules": [each["name"] for each in listed["schedules"]],
    }


class NoObserver:
    """Hears of jobs and does nothing."""

    def queued(self, job: Job) -> None: ...

    def batch_started(self, jobs: Sequence[Job]) -> None: ...

    def ended(self, job: Job) -> None: ...


class ImageService:
    """What every API of a server calls. Safe to use from several threads.

    Args:
      models: the packages.
      names: LoRAs and adapters that requests may name.
      observer: hears of jobs.
      engines: run the jobs; default one in this process, which opens the models.
    Attributes:
      is_ready: whether the first job can run.
      image_budget: limits the input images of all requests.
    """

    def __init__(
        self,
        models: ModelStore,
        names: RegisteredNames | None = None,
        settings: ServerSettings | None = None,
        observer: JobObserver | None = None,
        engines: ClosableEngines | None = None,
    ) -> None:
        self.models, self.names = models, names or RegisteredNames()
        self.settings = settings or ServerSettings()
        self.is_ready = False
        self._engines = engines or LocalEngine(models)
        self.queue = JobQueue(
            self._engines,
            lambda job: job.batch_key,
            self.settings,
            observer or NoObserver(),
        )
        self.image_budget = ImageBudget(self.settings.max_held, self.queue.retry_after)
        self._folders = {str(m.folder): m.name for m in models.models} | self.names.folders

    def start(self) -> None:
        """Wait until the first model can run, and begin to run jobs.

        Raises: see load_pipeline and Pipeline.warm_up.
        """
        self._engines.start(self.queue.start, warm_up=self.settings.warm_up)
        self.is_ready = True

    def request_images(self) -> RequestImages:
        """What decodes the input images of a request."""
        return RequestImages(self.settings, self.image_budget)

    def submit(self, request: ImageRequest, *, previews: bool = False, request_id: str = "") -> Job:
        """Check a request and let it wait.

        Args:
          previews: whether the job's events have a preview.
          request_id: of the HTTP request, for the log.
        Raises: InvalidArgumentError: an argument that is unknown, out of range or beyond a limit.
          QueueFullError: as many jobs wait as may wait. ShuttingDownError.
        """
        self.queue.check_room()
        model = self.models.model(request.model)
        try:
            arguments, count = checked_arguments(
                request.arguments, model, self.names, self.settings
            )
            loras = tuple(self.names.lora_files(arguments))
            self.models.check_need(
                model,
                requested_size(arguments, model),
                count,
                adapter_folders(arguments),
                loras=loras,
            )
        except (SDExportError, OSError) as error:
            raise self.public(error) from error
        timeout = request.timeout or self.settings.timeout
        if not 0 < timeout <= self.settings.timeout:
            raise InvalidArgumentError(
                f"timeout must be at most {self.settings.timeout:g} s (--timeout), got {timeout:g}"
            )
        made = ImageRequest(model.name, arguments, timeout, loras)
        job = Job(
            made,
            count,
            previews=previews,
            timeout=timeout,
            request_id=request_id,
            client=CLIENT.get(),
        )
        job.batch_key = self._batch_key(made, count, model)
        job.size = output_size(arguments, model)
        job.held = sum(image.width * image.height * 4 for image in input_images(arguments))
        self.queue.add(job)
        RELEASE_BODY.get()()
        return job

    def _batch_key(self, request: ImageRequest, count: int, model: Model) -> Hashable | None:
        """See batch_key; it knows more of a model that is open."""
        pipeline, files = model.pipeline, request.loras
        may_add_words = (
            pipeline is None or not files or any(map(pipeline.lora_may_add_words, files))
        )
        tokenizers = self.models.tokenizers(model)
        return batch_key(request, count, tokenizers, loras_may_add_words=may_add_words)

    def job(self, job_id: str) -> Job:
        """The job of an id.

        Raises: JobNotFoundError: there is none, or it ended too long ago.
        """
        return self.queue.job(job_id)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job, which frees its place, or the engine if nobody else's job runs.

        Raises: JobNotFoundError.
        """
        job = self.job(job_id)
        self.queue.cancel(job)
        return job

    def events(self, job: Job) -> AsyncGenerator[JobEvent]:
        """What happens to a job, from its present state to its end."""
        return events(job)

    async def result(self, job: Job, *, cancels: bool = True) -> Job:
        """Wait until a job is done.

        Args:
          cancels: whether the job is cancelled if nobody waits any more, because the task that
            calls this was cancelled.
        Raises: the job's error, if it failed or was cancelled.
        """
        try:
            await asyncio.shield(asyncio.wrap_future(job.completed))
        except asyncio.CancelledError:
            if cancels:
                self.queue.cancel(job, "the client closed the connection")
            raise
        if job.status != DONE and job.error is not None:
            raise self.public(job.error)
        return job

    def public(self, error: Exception) -> Exception:
        """An error as clients may read it: without the folders of the server."""
        if not isinstance(error, SDExportError):
            return error
        try:  # a new one, as a traceback holds what a request brought
            return type(error)(self.public_text(str(error)))
        except TypeError:
            return error

    def public_text(self, text: str) -> str:
        """A message without the folders of the server."""
        return public_text(text, self._folders)

    def describe(self) -> dict[str, Any]:
        """What the server has and allows, as JSON can hold it."""
        return {
            "models": [model.describe() for model in self.models.models],
            **_schedulers(),
            "loras": self.names.loras,
            **{name: sorted(known) for name, known in self.names.adapters.items()},
            "limits": self.settings.limits(),
        }

    def close(self, grace: float | None = None) -> None:
        """Let jobs end, cancel those that do not within `grace` seconds, and close the models.

        Within that time, clients may fetch the images of jobs that have ended lately.
        """
        grace = self.settings.grace if grace is None else grace
        end = time.monotonic() + grace
        self.queue.close(grace)
        until = time.monotonic() + _CANCELLING
        while not self.queue.join(_PAUSE) and time.monotonic() < until:
            self._engines.interrupt()
        if self.queue.join(0.0):
            self._engines.close()
        while time.monotonic() < end and any(map(_is_awaited, self.queue.jobs())):
            time.sleep(_PAUSE)


def _is_awaited(job: Job) -> bool:
    """Whether a client is probably about to fetch images of a job."""
    since = time.monotonic() - _FETCHING
    return job.status == DONE and bool(job.unfetched) and (job.ended or since) > since
