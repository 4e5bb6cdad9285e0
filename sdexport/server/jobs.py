"""A job: a request for images, what has become of it, and who wants to hear of it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from sdexport.engines.errors import SDExportError
from sdexport.runtime.images.parameters import Parameters
from sdexport.server.image_request import ImageRequest

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)
STEP, STATUS = "step", "status"


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    kind: "status" (queued or running), "step", "done", "failed" or "cancelled". step, steps: how
    many are done, and of all. timestep: of the step. seconds: since the job began to run.
    preview: of the first image, small, if previews were requested.
    """

    kind: str
    step: int = 0
    steps: int = 0
    timestep: float | None = None
    seconds: float = 0.0
    preview: Image.Image | None = None


Listener = Callable[[JobEvent], object]


class Job:
    """A request for images, from its arrival to its end; safe to use from several threads.

    Attributes:
      status: queued, running, done, failed or cancelled.
      request: as it runs: with the names of the server replaced, and seeds; without input images
        when it is over.
      count: images. size: their width and height.
      previews: whether events have previews.
      images, parameters: when it is done, of each image.
      flagged: for each image whether the safety checker flagged it; None if it was not checked.
      seconds: of each stage.
      warnings: what the library warned of, such as a prompt that was truncated.
      error: why it failed, or that it was cancelled.
      created, started, ended: time.monotonic(); None before.
      request_id: of the HTTP request, for the log.
      client: who sent it, as far as the server can tell: by the key or the address.
      batch_key: what jobs that run together have in common; None if it runs alone.
      held: bytes of its input images; 0 when it is over.
      unfetched: indices of images that a client is going to fetch when it is done.
    """

    def __init__(
        self,
        request: ImageRequest,
        count: int,
        *,
        previews: bool = False,
        timeout: float = 600.0,
        request_id: str = "",
        client: str = "",
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.request, self.count, self.previews = request, count, previews
        self.request_id, self.client, self.size = request_id, client, (0, 0)
        self.status = QUEUED
        self.step = self.steps = 0
        self.timestep: float | None = None
        self.images: list[Image.Image] = []
        self.parameters: list[Parameters] = []
        self.flagged: list[bool] | None = None
        self.seconds: Mapping[str, float] = {}
        self.warnings: list[str] = []
        self.error: SDExportError | None = None
        self.created = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.deadline = self.created + timeout
        self.preview: Image.Image | None = None
        self.batch_key: Hashable | None = None
        self.held = 0
        self.unfetched: set[int] = set()
        self.completed: Future[None] = Future()
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.status in ENDED

    @property
    def bytes(self) -> int:
        """Of the pixels of its images."""
        return sum(image.width * image.height * len(image.getbands()) for image in self.images)

    def begin(self) -> bool:
        """Note that it runs now; False if it is over."""
        with self._lock:
            if self.is_over:
                return False
            self.status, self.started = RUNNING, self.started or time.monotonic()
            self._tell(self._event(STATUS))
            return True

    def note_place(self) -> None:
        """Note that fewer jobs wait before it."""
        with self._lock:
            if self._listeners and self.status == QUEUED:
                self._tell(self._event(STATUS))

    def note_step(
        self, step: int, steps: int, timestep: float, preview: Image.Image | None = None
    ) -> None:
        """Note that a step is done."""
        with self._lock:
            if self.is_over:
                return
            self.step, self.steps, self.timestep = step, steps, timestep
            self.preview = preview or self.preview
            self._tell(self._event(STEP))

    def succeed(
        self,
        images: list[Image.Image],
        parameters: list[Parameters],
        seconds: Mapping[str, float],
        flagged: list[bool] | None = None,
    ) -> bool:
        """Note that it is done; False if it was over already."""
        with self._lock:
            if self.is_over:
                return False
            self.images, self.parameters, self.flagged = images, parameters, flagged
            self.seconds = dict(seconds)
            self._end(DONE)
            return True

    def fail(self, error: SDExportError) -> bool:
        """Note that it failed; False if it was over already."""
        return self._stop(FAILED, error)

    def cancel(self, error: SDExportError) -> bool:
        """Note that it was cancelled; False if it was over already."""
        return self._stop(CANCELLED, error)

    def listen(self, listener: Listener) -> JobEvent:
        """Have a function called with every event from now on, in any thread.

        Returns: the event that describes the present state.
        """
        with self._lock:
            kind = self.status if self.is_over else (STEP if self.step else STATUS)
            if not self.is_over:
                self._listeners.append(listener)
            return self._event(kind)

    def ignore(self, listener: Listener) -> None:
        """Do not call a function any more."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def _stop(self, status: str, error: SDExportError) -> bool:
        with self._lock:
            if self.is_over:
                return False
            # the frames of a traceback hold arrays and images
            self.error = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
            self._end(status)
            return True

    def _end(self, status: str) -> None:
        self.status, self.ended, self.preview = status, time.monotonic(), None
        self.request = replace(self.request, arguments=_without_images(self.request.arguments))
        self.held = 0
        self._tell(self._event(status))
        self._listeners.clear()
        self.completed.set_result(None)

    def _event(self, kind: str) -> JobEvent:
        now = self.ended or time.monotonic()
        seconds = now - self.started if self.started else 0.0
        return JobEvent(kind, self.step, self.steps, self.timestep, seconds, self.preview)

    def _tell(self, event: JobEvent) -> None:
        for listener in self._listeners:
            listener(event)


def _without_images(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in _WITH_IMAGES}


_WITH_IMAGES = ("image", "mask_image", "controlnets", "t2i_adapters", "ip_adapters")
