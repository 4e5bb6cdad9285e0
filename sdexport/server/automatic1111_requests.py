"""The requests that run now, as AUTOMATIC1111's progress, interrupt and skip see them.

The web UI runs one request at a time. Here several may wait or run; the one that arrived first is
the one that is shown, interrupted and skipped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from PIL import Image

from sdexport.server.jobs import Job


class RunningRequest:
    """A request of one or more jobs, one after the other.

    Attributes:
      count: jobs that it has. began: when it arrived.
      jobs: that were submitted. interrupted: whether no further job is to run.
      skipped: ids of the jobs that were left out.
    """

    def __init__(self, count: int) -> None:
        self.count, self.began = count, datetime.now().astimezone()
        self.jobs: list[Job] = []
        self.interrupted = False
        self.skipped: set[str] = set()
        self._began = time.monotonic()

    @property
    def current(self) -> Job | None:
        """The first job that is not over."""
        return next((job for job in self.jobs if not job.is_over), None)

    @property
    def done(self) -> int:
        """Jobs that are over."""
        return sum(job.is_over for job in self.jobs)

    @property
    def progress(self) -> float:
        """0..1 over all jobs."""
        job = self.current
        part = job.step / job.steps if job is not None and job.steps else 0.0
        return min((self.done + part) / self.count, 1.0)

    def state(self) -> dict[str, Any]:
        """As the web UI describes it."""
        job = self.current
        return {
            "skipped": job is not None and job.id in self.skipped,
            "interrupted": self.interrupted,
            "stopping_generation": self.interrupted,
            "job": f"Batch {min(self.done + 1, self.count)} out of {self.count}",
            "job_count": self.count,
            "job_timestamp": self.began.strftime("%Y%m%d%H%M%S"),
            "job_no": min(self.done, self.count - 1),
            "sampling_step": job.step if job else 0,
            "sampling_steps": job.steps if job else 0,
        }

    def eta(self) -> float:
        """Seconds that are left, from the time that was taken; 0 before anything is done."""
        taken, progress = time.monotonic() - self._began, self.progress
        return taken / progress - taken if progress else 0.0


IDLE_STATE = {
    "skipped": False,
    "interrupted": False,
    "stopping_generation": False,
    "job": "",
    "job_count": 0,
    "job_timestamp": "0",
    "job_no": 0,
    "sampling_step": 0,
    "sampling_steps": 0,
}
"""The state while nothing runs."""


class RunningRequests:
    """The requests that wait or run, in the order of their arrival."""

    def __init__(self) -> None:
        self._requests: list[RunningRequest] = []
        self._lock = threading.Lock()

    @contextmanager
    def running(self, count: int) -> Iterator[RunningRequest]:
        """A request of `count` jobs, which counts as running for as long as the context."""
        request = RunningRequest(count)
        with self._lock:
            self._requests.append(request)
        try:
            yield request
        finally:
            with self._lock:
                self._requests.remove(request)

    @property
    def first(self) -> RunningRequest | None:
        """The one that arrived first; None while nothing runs."""
        with self._lock:
            return self._requests[0] if self._requests else None

    def interrupt(self) -> Sequence[Job]:
        """Let the first request run no further job.

        Returns: its jobs that are not over, for the caller to cancel.
        """
        request = self.first
        if request is None:
            return []
        request.interrupted = True
        return [job for job in request.jobs if not job.is_over]

    def skip(self) -> Sequence[Job]:
        """Leave out the job of the first request that runs.

        Returns: that job, for the caller to cancel.
        """
        request = self.first
        job = request.current if request is not None else None
        if request is None or job is None:
            return []
        request.skipped.add(job.id)
        return [job]

    def preview(self) -> Image.Image | None:
        """The latest preview of the first request."""
        request = self.first
        job = request.current if request is not None else None
        return job.preview if job is not None else None
