"""The queue of jobs, and the one thread that runs them, compatible ones together."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol

from sdexport.engines.exit_actions import CANCEL
from sdexport.server.ended_jobs import jobs_to_forget
from sdexport.server.jobs import CANCELLED, ENDED, QUEUED, Job, JobEvent
from sdexport.server.server_errors import (
    DeadlineError,
    JobCancelledError,
    JobNotFoundError,
    QueueFullError,
    ShuttingDownError,
)
from sdexport.server.server_settings import ServerSettings

_log = logging.getLogger(__name__)
_TICK = 0.25
"""Seconds between two looks at deadlines and at jobs that ended."""
_BUSY = 1.0
"""Seconds for which a server counts as one of several clients after it had several."""
_USUAL = 5.0
"""Seconds that a batch takes, before one has run."""


class JobObserver(Protocol):
    """Hears of jobs, for metrics and traces; called in any thread."""

    def queued(self, job: Job) -> None: ...

    def batch_started(self, jobs: Sequence[Job]) -> None: ...

    def ended(self, job: Job) -> None: ...


class JobQueue:
    """Jobs that wait, run and have ended. Safe to use from several threads.

    A job that finds the server idle starts at once. While several clients are served, a job waits
    for others that can run with it: up to `batch_window` after it arrived or the engine was free.

    Args:
      run: runs jobs together and ends each of them; it must not raise.
      key_of: what jobs that run together have in common; None for a job that runs alone.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], None],
        key_of: Callable[[Job], Hashable | None],
        settings: ServerSettings,
        observer: JobObserver,
    ) -> None:
        self._run, self._key_of, self._settings = run, key_of, settings
        self._observer = observer
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._closing = self._stopped = False
        self._busy_until = self._free_since = -math.inf
        self._batch_seconds = _USUAL
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._work, "jobs"), (self._watch, "deadlines"))
        ]

    def start(self) -> None:
        """Begin to run jobs."""
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that run and are not over."""
        return sum(not job.is_over for job in self._running)

    @property
    def busy(self) -> bool:
        """Whether the engine works, perhaps for jobs that are over."""
        return bool(self._running)

    @property
    def is_closing(self) -> bool:
        """Whether no more jobs are taken."""
        return self._closing

    def check_room(self) -> None:
        """Raises: QueueFullError: as many jobs wait as may wait. ShuttingDownError."""
        if self._closing:
            raise ShuttingDownError
        if len(self._waiting) >= self._settings.max_queue:
            limit = f"{self._settings.max_queue} jobs wait already, the limit (--max-queue)"
            raise QueueFullError(limit, self.retry_after())

    def add(self, job: Job) -> None:
        """Let a job wait.

        Raises: see check_room.
        """
        with self._changed:
            self.check_room()
            held = sum(each.held for each in self._waiting)
            if held and held + job.held > self._settings.max_held:
                limit = f"the jobs that wait hold {held:,} bytes of images"
                raise QueueFullError(limit, self.retry_after())
            if self._waiting or self.running:  # not one that is over already
                self._busy_until = time.monotonic() + _BUSY
            self._waiting.append(job)
            self._jobs[job.id] = job
            self._observer.queued(job)
            job.listen(partial(self._note_end, job))
            self._changed.notify_all()

    def job(self, job_id: str) -> Job:
        """The job of an id.

        Raises: JobNotFoundError: there is none, or not any more.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise JobNotFoundError("there is no such job, or it ended too long ago")
        return job

    def jobs(self) -> list[Job]:
        """Those that wait, run or ended lately, the oldest first."""
        with self._changed:
            return list(self._jobs.values())

    def position(self, job: Job) -> int | None:
        """How many jobs run before a job that waits; None if it does not wait."""
        with self._changed:
            return self._waiting.index(job) if job in self._waiting else None

    def cancel(self, job: Job, reason: str = "the job was cancelled") -> bool:
        """Cancel a job, which frees its place, or the engine if nobody else's job runs.

        Returns: False if it was over.
        """
        if not job.cancel(JobCancelledError(reason)):
            return False
        self._release(job)
        return True

    def retry_after(self) -> int:
        """Seconds until there is probably room for another job."""
        batches = -(-len(self._waiting) // self._settings.max_batch)
        ahead = max(batches, 1) * self._batch_seconds / max(len(self._waiting), 1)
        return min(max(math.ceil(ahead), 1), 600)

    def close(self, grace: float) -> None:
        """Take no more jobs, wait until the others have ended, and cancel those that do not."""
        until = time.monotonic() + grace
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while (self._waiting or self._running) and time.monotonic() < until:
                self._changed.wait(max(until - time.monotonic(), 0))
        for job in self.jobs():
            if not job.is_over:
                self.cancel(job, "the server is shutting down")
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait for the thread that runs jobs, after `close`; whether it has ended."""
        if self._threads[0].is_alive():
            self._threads[0].join(timeout)
        return not self._threads[0].is_alive()

    def _note_end(self, job: Job, event: JobEvent) -> None:
        if event.kind in ENDED:
            self._observer.ended(job)
            _log.info(
                "job %s of %d images: %s, %.2f s after it arrived",
                *(job.id, job.count, job.status, time.monotonic() - job.created),
                extra={"request_id": job.request_id, "job": job.id, "model": job.request.model},
            )

    def _release(self, job: Job) -> None:
        """Give back the place of a job that ended before it was done."""
        with self._changed:  # no other batch begins meanwhile
            if job in self._waiting:
                self._waiting.remove(job)
                self._tell_waiting()
                self._changed.notify_all()
            elif job in self._running and not self.running:
                CANCEL.run(self._threads[0].ident)  # the call of the engine that nobody waits for

    def _work(self) -> None:
        while batch := self._take():
            began, several = time.monotonic(), len(batch) > 1
            self._observer.batch_started(batch)
            self._run(batch)
            ended = max(job.ended or began for job in batch)
            was_served = any(job.status != CANCELLED for job in batch)
            del batch  # with its images
            with self._changed:
                self._running = []
                now = time.monotonic()
                if was_served:  # its clients may come back
                    self._free_since = now
                if several or any(job.created < ended for job in self._waiting):
                    self._busy_until = now + _BUSY
                self._batch_seconds += 0.3 * (now - began - self._batch_seconds)
                self._changed.notify_all()

    def _take(self) -> list[Job]:
        """The next jobs that run together, none if the queue was stopped."""
        with self._changed:
            while True:
                while not self._waiting and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return []
                batch = self._compatible()
                wait = self._waiting_time(batch)
                if wait <= 0:
                    break
                self._changed.wait(wait)
            self._waiting = [job for job in self._waiting if job not in batch]
            self._running = batch = [job for job in batch if job.begin()]
            self._tell_waiting()
            return batch or self._take()

    def _tell_waiting(self) -> None:
        for job in self._waiting:
            job.note_place()

    def _compatible(self) -> list[Job]:
        """The job that waits longest, and those that can run with it."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        key, count, batch = self._key_of(first), first.count, [first]
        if key is None:
            return batch
        for job in self._waiting[1:]:
            fits = count + job.count <= self._settings.max_batch
            if fits and self._key_of(job) == key:
                batch.append(job)
                count += job.count
        return batch

    def _waiting_time(self, batch: Sequence[Job]) -> float:
        """Seconds for which to wait for more jobs."""
        if not batch or self._closing or self._key_of(batch[0]) is None:
            return 0.0
        is_full = sum(job.count for job in batch) >= self._settings.max_batch
        now = time.monotonic()
        if is_full or now > self._busy_until:
            return 0.0
        return max(batch[0].created, self._free_since) + self._settings.batch_window - now

    def _watch(self) -> None:
        """End jobs at their deadlines, and forget those that ended."""
        while not self._stopped:
            now = time.monotonic()
            for job in self.jobs():
                if not job.is_over and now > job.deadline:
                    waited = "waited" if job.status == QUEUED else "ran"
                    seconds = job.deadline - job.created
                    if job.fail(
                        DeadlineError(f"the job was not done within {seconds:g} s; it {waited}")
                    ):
                        self._release(job)
            self._forget_ended(now)
            time.sleep(_TICK)

    def _forget_ended(self, now: float) -> None:
        with self._changed:
            for job in jobs_to_forget(list(self._jobs.values()), now, self._settings):
                del self._jobs[job.id]
