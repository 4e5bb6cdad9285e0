"""The queue of jobs, and the threads that run them, compatible ones together."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Protocol

from sdexport.server.batch_engines import Engines, OneEngine, Run
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
    for others that can run with it: up to `batch_window` after it arrived or an engine was free.

    Args:
      engines: run the jobs; a function runs one batch at a time.
      key_of: what jobs that run together have in common; None for a job that runs alone.
    """

    def __init__(
        self,
        engines: Engines | Run,
        key_of: Callable[[Job], Hashable | None],
        settings: ServerSettings,
        observer: JobObserver,
    ) -> None:
        self._engines = OneEngine(engines) if callable(engines) else engines
        self._key_of, self._settings = key_of, settings
        self._observer = observer
        self._waiting: list[Job] = []
        self._running: dict[int, Sequence[Job]] = {}  # thread -> its batch
        self._engines_awaited: dict[int, str | None] = {}  # thread -> the model
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._closing = self._stopped = False
        self._busy_until = self._free_since = -math.inf
        self._batch_seconds = _USUAL
        self._workers = [
            threading.Thread(target=self._work, name="jobs", daemon=True)
            for _ in range(self._engines.count)
        ]
        self._watcher = threading.Thread(target=self._watch, name="deadlines", daemon=True)

    def start(self) -> None:
        """Begin to run jobs."""
        for thread in (*self._workers, self._watcher):
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that run and are not over."""
        batches = list(self._running.values())
        return sum(not job.is_over for batch in batches for job in batch)

    @property
    def busy(self) -> bool:
        """Whether an engine works, perhaps for jobs that are over."""
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
        """Wait for the threads that run jobs, after `close`; whether they have ended."""
        until = time.monotonic() + timeout
        for thread in self._workers:
            if thread.is_alive():
                thread.join(max(until - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._workers)

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
                if not self._is_needed(job.request.model):
                    self._engines.end_surplus(job.request.model)
            for thread, batch in self._running.items():
                if job in batch and all(each.is_over for each in batch):
                    self._engines.interrupt(thread)  # a call that nobody waits for

    def _work(self) -> None:
        while (first := self._await_job()) is not None:
            model, needed = first.request.model, partial(self._is_needed, first.request.model)
            try:
                with self._engines.free(first, needed) as run:
                    del first
                    if run is not None and (batch := self._take(model)):
                        self._run_batch(run, batch)
                        del batch  # with its images
            except Exception:  # noqa: BLE001  the thread must go on
                _log.exception("an engine for the model %s failed", model)
                time.sleep(_TICK)
            finally:
                with self._changed:
                    self._engines_awaited.pop(threading.get_ident(), None)
                    self._running.pop(threading.get_ident(), None)

    def _is_needed(self, model: str | None) -> bool:
        """Whether no more engines are awaited for a model than batches of it wait."""
        with self._changed:
            batches = sum(first.request.model == model for first in self._first_of_batches())
            return list(self._engines_awaited.values()).count(model) <= batches

    def _run_batch(self, run: Run, batch: Sequence[Job]) -> None:
        began, several = time.monotonic(), len(batch) > 1
        self._observer.batch_started(batch)
        run(batch)
        ended = max(job.ended or began for job in batch)
        was_served = any(job.status != CANCELLED for job in batch)
        with self._changed:
            del self._running[threading.get_ident()]
            now = time.monotonic()
            if was_served:  # its clients may come back
                self._free_since = now
            if several or any(job.created < ended for job in self._waiting):
                self._busy_until = now + _BUSY
            self._batch_seconds += 0.3 * (now - began - self._batch_seconds)
            self._changed.notify_all()

    def _await_job(self) -> Job | None:
        """The first job of a batch for which no engine is awaited; None if the queue was stopped.

        Its engine counts as awaited until `_take` was called for its model.
        """
        with self._changed:
            while not self._stopped:
                first = self._unattended()
                if first is not None:
                    self._engines_awaited[threading.get_ident()] = first.request.model
                    return first
                self._changed.wait()
            return None

    def _unattended(self) -> Job | None:
        """The first job of a batch for which no engine is awaited yet."""
        awaited = Counter(self._engines_awaited.values())
        for first in self._first_of_batches():
            if not awaited[first.request.model]:
                return first
            awaited[first.request.model] -= 1
        return None

    def _first_of_batches(self) -> Iterator[Job]:
        """The job that waits longest in each batch that the jobs make now."""
        room: dict[Hashable, int] = {}
        for job in self._waiting:
            key = self._key_of(job)
            if key is not None and room.get(key, 0) >= job.count:
                room[key] -= job.count
            else:
                room[key] = self._settings.max_batch - job.count
                yield job

    def _take(self, model: str | None) -> list[Job]:
        """The next jobs that run together on an engine; none if none waits any more.

        Args:
          model: that the engine can run at once; others run if no job of it waits.
        """
        with self._changed:
            while self._waiting and not self._stopped:
                batch = self._compatible(model)
                wait = self._waiting_time(batch)
                if wait <= 0:
                    break
                self._changed.wait(wait)
            del self._engines_awaited[threading.get_ident()]
            if self._stopped or not self._waiting:
                return []
            self._waiting = [job for job in self._waiting if job not in batch]
            begun = [job for job in batch if job.begin()]
            if begun:
                self._running[threading.get_ident()] = begun
            self._tell_waiting()
            self._changed.notify_all()
            return begun

    def _tell_waiting(self) -> None:
        for job in self._waiting:
            job.note_place()

    def _compatible(self, model: str | None) -> list[Job]:
        """The job that waits longest, of a model if one does, and those that can run with it."""
        of_model = (job for job in self._waiting if job.request.model == model)
        first = next(of_model, self._waiting[0])
        key, count, batch = self._key_of(first), first.count, [first]
        if key is None:
            return batch
        for job in self._waiting:
            if job is first:
                continue
            fits = count + job.count <= self._settings.max_batch
            if fits and self._key_of(job) == key:
                batch.append(job)
                count += job.count
        return batch

    def _waiting_time(self, batch: Sequence[Job]) -> float:
        """Seconds for which to wait for more jobs."""
        if self._closing or self._key_of(batch[0]) is None:
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
