"""Runs the batches of a queue in other processes; what a worker that dies was doing runs again.

A worker is called without a batch. When it is free and has opened the model, it says so, and only
then takes jobs from the queue: meanwhile more may have come that can run with them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sdexport.engines.errors import SDExportError
from sdexport.engines.messages import one_line
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.server.batch_engines import Run
from sdexport.server.jobs import ENDED, Job, JobEvent
from sdexport.server.model_store import Model, ModelStore
from sdexport.server.server_errors import ModelFailedError, ShuttingDownError
from sdexport.server.worker_messages import JobEnded, Message, SentJob, StepDone, WorkerReady

_log = logging.getLogger(__name__)
_PAUSE = 0.1
"""Seconds until a worker is called again after one that was called could not be reached."""
MOST_DEATHS = 3
"""A job that workers die of so often fails."""


class WorkerCall(Protocol):
    """A call to a worker: what it sends, until the worker is free again."""

    def __iter__(self) -> Iterator[Message]:
        """Raises: any error: the worker died, could not be reached, or the call was cancelled."""
        ...

    def cancel(self) -> None:
        """End the call as soon as possible. Called in any thread."""
        ...


CallWorker = Callable[[str, str | None], WorkerCall]
"""(ticket, model) -> the call to whichever worker is free first. The worker gets its batch from
WorkerEngines.batch_of(ticket)."""


class RemoteModels(ModelStore):
    """The models of a server whose workers open them; here only the files about them are read.

    Raises: see ModelStore. PackageError: a tokenizer is damaged.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        options: Mapping[str, Any] | None = None,
        *,
        memory_limit: int | None = None,
        max_batch: int = 1,
    ) -> None:
        super().__init__(folders, options, memory_limit=memory_limit, max_batch=max_batch)
        # with them it is known which prompts can run together
        self._tokenizers = {
            model.name: [
                model.package.tokenizer(spec.name)
                for spec in model.package.family.text_encoders
                if spec.name in model.package.manifest.components
            ]
            for model in self.models
        }

    def tokenizers(self, model: Model) -> Collection[ClipTokenizer]:
        """Those of a model."""
        return self._tokenizers[model.name]

    def note_open(self, worker: str, names: Collection[str]) -> None:
        """Note which models a worker has open."""
        for model in self.models:
            (model.workers.add if model.name in names else model.workers.discard)(worker)


class _Lease:
    """A worker that waits for a batch."""

    def __init__(self, ticket: str, call: WorkerCall, messages: Iterator[Message]) -> None:
        self.ticket, self.call, self.messages = ticket, call, messages
        self.worker = ""


class WorkerEngines:
    """Runs batches in other processes.

    Args:
      call: calls a worker.
      count: workers at most.
      waits: whether the first worker must be there before the server is ready.
    """

    def __init__(
        self, call: CallWorker, count: int, models: RemoteModels, *, waits: bool = True
    ) -> None:
        self._call, self.count, self._models, self._waits = call, count, models, waits
        self._batches: dict[str, Future[Sequence[SentJob] | None]] = {}
        self._calls: set[WorkerCall] = set()
        self._waiting: dict[WorkerCall, str | None] = {}  # for a worker -> the model
        self._heard: dict[str, None] = {}  # workers, those heard of last at the end
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def start(self, begin: Callable[[], None], *, warm_up: bool) -> None:
        """Take jobs, which have their deadlines, and wait for the first worker.

        Args:
          begin: called at once.
          warm_up: of no effect; workers warm up themselves.
        """
        begin()
        if self._waits:
            lease = self._lease(None)
            if lease is not None:
                self._give_back(lease)

    async def batch_of(self, ticket: str) -> Sequence[SentJob] | None:
        """The batch for a worker that said that it is ready; None if there is none any more."""
        given = self._batches.get(ticket)
        return None if given is None else await asyncio.wrap_future(given)

    @contextmanager
    def free(self, job: Job, is_needed: Callable[[], bool]) -> Iterator[Run | None]:
        """Wait until a worker can run the model of a job, and hold it for a block."""
        model = job.request.model
        del job  # the block takes long
        lease = self._lease(model, is_needed=is_needed)
        if lease is None:
            yield _fail_all if self._closed.is_set() else None
            return
        try:
            yield partial(self._run, lease)
        finally:
            self._give_back(lease)

    def end_surplus(self, model: str | None) -> None:
        """Cancel the newest call that waits for a worker with a model."""
        with self._lock:
            calls = [call for call, name in self._waiting.items() if name == model]
            if calls:
                del self._waiting[calls[-1]]
                _cancel(calls[-1])

    def interrupt(self, thread: int | None = None) -> None:
        """Cancel all calls, for good; those of jobs that are over are cancelled in any case."""
        if thread is not None:
            return
        self._closed.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            _cancel(call)

    def close(self) -> None:
        """Cancel all calls; the workers close their models themselves."""
        self.interrupt()

    def _lease(
        self,
        model: str | None,
        jobs: Sequence[Job] = (),
        is_needed: Callable[[], bool] = lambda: True,
    ) -> _Lease | None:
        """A worker that waits for a batch.

        Args:
          jobs: that are to run again; nobody waits for a worker any more when all are over.
        Returns: None if the engines were closed, the jobs are over, or it is not needed any more.
        """

        def is_over() -> bool:
            return self._closed.is_set() or _are_over(jobs) or not is_needed()

        while not is_over():
            lease = None
            try:
                lease = self._called(model)
                with _when_over(jobs, lease.call):
                    if is_over():  # before the call could be cancelled for that
                        _cancel(lease.call)
                    ready = next(lease.messages)
                if isinstance(ready, WorkerReady) and self._stops_waiting(lease):
                    self._note_ready(ready)
                    lease.worker = ready.worker
                    return lease
            except Exception as error:  # noqa: BLE001  the thread must go on
                if not is_over():
                    _log.warning("no worker could be reached: %s", one_line(error, 300))
            if lease is not None:
                self._forget(lease)
            self._closed.wait(_PAUSE)
        return None

    def _called(self, model: str | None) -> _Lease:
        ticket = secrets.token_urlsafe(16)
        self._batches[ticket] = Future()
        try:
            call = self._call(ticket, model)
        except BaseException:
            del self._batches[ticket]
            raise
        with self._lock:
            self._calls.add(call)
            self._waiting[call] = model
        return _Lease(ticket, call, iter(call))

    def _stops_waiting(self, lease: _Lease) -> bool:
        """Note that a call has its worker; False if it was cancelled as surplus."""
        with self._lock:
            was_waiting = lease.call in self._waiting
            self._waiting.pop(lease.call, None)
        return was_waiting

    def _note_ready(self, ready: WorkerReady) -> None:
        """Note what a worker has open, and forget workers that more than `count` came after."""
        with self._lock:
            self._heard.pop(ready.worker, None)
            self._heard[ready.worker] = None
            self._models.note_open(ready.worker, ready.models)
            while len(self._heard) > self.count:  # one that was idle may have died unnoticed
                oldest = next(iter(self._heard))
                del self._heard[oldest]
                self._models.note_open(oldest, ())

    def _forget(self, lease: _Lease) -> None:
        self._stops_waiting(lease)
        with self._lock:
            self._calls.discard(lease.call)
        self._batches.pop(lease.ticket, None)

    def _give_back(self, lease: _Lease) -> None:
        """Let a worker go that may still wait for a batch."""
        given = self._batches.get(lease.ticket)
        if given is not None and not given.done():
            with suppress(Exception):
                given.set_result(None)
                for _ in lease.messages:
                    pass
        self._forget(lease)

    def _run(self, lease: _Lease, jobs: Sequence[Job]) -> None:
        """Run jobs together, again if the worker dies, and at last each alone."""
        model = jobs[0].request.model  # the lease may be for another
        self._attempt(lease, jobs)
        for death in range(1, MOST_DEATHS):
            left = [job for job in jobs if not job.is_over]
            is_last = death == MOST_DEATHS - 1
            for batch in [[job] for job in left] if is_last else [left] if left else []:
                again = self._lease(model, batch)
                if again is not None:
                    self._attempt(again, [job for job in batch if not job.is_over])
        for job in jobs:
            if not job.is_over:
                closed = self._closed.is_set()
                job.fail(ShuttingDownError() if closed else _died(job))

    def _attempt(self, lease: _Lease, jobs: Sequence[Job]) -> None:
        """Send jobs to a worker, and tell them what happens until it is free again."""
        began = time.monotonic()
        try:
            with _when_over(jobs, lease.call):
                self._batches[lease.ticket].set_result([SentJob.of(job) for job in jobs])
                for message in lease.messages:
                    if isinstance(message, StepDone):
                        job = jobs[message.place]
                        job.note_step(
                            message.step, message.steps, message.timestep, message.preview
                        )
                    elif isinstance(message, JobEnded):
                        message.apply(jobs[message.place])
                        self._note_model(lease, jobs[message.place])
            self._fail_unsent(lease, jobs)
        except Exception as error:  # noqa: BLE001  a worker may die of anything
            if not _are_over(jobs):
                _log.warning(
                    "the worker %s ended after %.1f s of a batch of %d jobs, which run again: %s",
                    *(lease.worker, time.monotonic() - began, len(jobs), one_line(error, 300)),
                )
                self._models.note_open(lease.worker, ())
        finally:
            self._forget(lease)

    def _fail_unsent(self, lease: _Lease, jobs: Sequence[Job]) -> None:
        """Fail jobs of which a worker has said nothing before its stream ended."""
        lost = [job for job in jobs if not job.is_over]
        if lost:
            _log.warning(
                "the worker %s found no batch for %d jobs, which fail: another server has answered "
                "it, as this one is being replaced",
                *(lease.worker, len(lost)),
            )
            _fail_all(lost)

    def _note_model(self, lease: _Lease, job: Job) -> None:
        """A worker has the model of a job open that it has run."""
        if job.images and lease.worker in self._heard:
            self._models.model(job.request.model).workers.add(lease.worker)


def _are_over(jobs: Sequence[Job]) -> bool:
    """Whether there are jobs, and all are over."""
    return bool(jobs) and all(job.is_over for job in jobs)


@contextmanager
def _when_over(jobs: Sequence[Job], call: WorkerCall) -> Iterator[None]:
    """Cancel a call when its last job was cancelled or is too late while a block runs."""
    own = threading.get_ident()

    def ended(event: JobEvent) -> None:
        if event.kind in ENDED and threading.get_ident() != own and _are_over(jobs):
            _cancel(call)

    for job in jobs:
        job.listen(ended)
    try:
        if _are_over(jobs):
            _cancel(call)
        yield
    finally:
        for job in jobs:
            job.ignore(ended)


def _cancel(call: WorkerCall) -> None:
    """Cancel a call in a thread of its own, as this one may hold the lock of a job."""

    def cancel() -> None:
        with suppress(Exception):
            call.cancel()

    threading.Thread(target=cancel, name="cancel", daemon=True).start()


def _fail_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.fail(ShuttingDownError())


def _died(job: Job) -> SDExportError:
    failed = ModelFailedError(
        f"generating failed: {MOST_DEATHS} workers ended in the middle; the server's log has the "
        f"details of job {job.id}"
    )
    failed.reason = "WorkerDied"
    return failed
