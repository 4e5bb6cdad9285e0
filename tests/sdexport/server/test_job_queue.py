"""The queue of jobs, with a stand-in for the engine: order, batches, ends, limits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.exit_actions import CANCEL
from sdexport.server import job_queue
from sdexport.server.image_request import ImageRequest
from sdexport.server.image_service import NoObserver
from sdexport.server.job_events import MOST_WAITING, events
from sdexport.server.job_queue import JobQueue
from sdexport.server.jobs import Job, JobEvent
from sdexport.server.server_errors import (
    DeadlineError,
    JobCancelledError,
    JobNotFoundError,
    QueueFullError,
    ShuttingDownError,
)
from sdexport.server.server_settings import ServerSettings
from tests.helpers.live_server import PATIENCE, wait_until


class Engine:
    """Runs batches when the test says so.

    batches: the jobs of each. started: released for each batch; go: lets one batch end.
    """

    def __init__(self) -> None:
        self.batches: list[list[Job]] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, jobs: Sequence[Job]) -> None:
        self.batches.append(list(jobs))
        self.started.release()
        assert self.go.acquire(timeout=PATIENCE)
        for job in jobs:
            job.succeed([], [], {})

    def await_start(self) -> None:
        assert self.started.acquire(timeout=PATIENCE)


def job_of(key: Any = "a", count: int = 1, timeout: float = PATIENCE) -> Job:
    job = Job(ImageRequest("demo", {"prompt": "x"}), count, timeout=timeout)
    job.batch_key = key
    return job


@contextmanager
def queue_of(run: Callable[[Sequence[Job]], None], **settings: Any) -> Iterator[JobQueue]:
    made = ServerSettings(**settings)
    queue = JobQueue(run, lambda job: job.batch_key, made, NoObserver())
    queue.start()
    try:
        yield queue
    finally:
        if isinstance(run, Engine):
            for _ in range(100):
                run.go.release()
        queue.close(PATIENCE)
        assert queue.join(PATIENCE)


def test_jobs_that_wait_together_run_together_in_order() -> None:
    engine = Engine()
    with queue_of(engine, batch_window=0.0, max_batch=3) as queue:
        first = job_of()
        queue.add(first)
        engine.await_start()  # the others wait meanwhile
        waiting = [job_of("b"), job_of("a"), job_of("b"), job_of("b"), job_of("b"), job_of(None)]
        for job in waiting:
            queue.add(job)
        assert [queue.position(job) for job in waiting] == list(range(6))
        assert queue.waiting == 6 and queue.running == 1
        for _ in range(5):
            engine.go.release()
        wait_until(lambda: all(job.is_over for job in waiting))
        batches = [[waiting.index(job) for job in batch] for batch in engine.batches[1:]]
        assert batches == [[0, 2, 3], [1], [4], [5]]


def test_a_request_of_several_images_counts_as_many() -> None:
    engine = Engine()
    with queue_of(engine, batch_window=0.0, max_batch=4) as queue:
        queue.add(job_of())
        engine.await_start()
        jobs = [job_of(count=3), job_of(count=2), job_of(count=1), job_of(count=9)]
        for job in jobs:
            queue.add(job)
        for _ in range(4):
            engine.go.release()
        wait_until(lambda: all(job.is_over for job in jobs))
        counts = [[job.count for job in batch] for batch in engine.batches[1:]]
        assert counts == [[3, 1], [2], [9]]


def test_a_job_alone_starts_at_once_and_a_busy_server_waits_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_queue, "_BUSY", PATIENCE)
    engine = Engine()
    with queue_of(engine, batch_window=PATIENCE, max_batch=2) as queue:
        queue.add(job_of())
        engine.await_start()  # although the window is long
        second, third = job_of(), job_of()
        queue.add(second)
        engine.go.release()
        wait_until(lambda: queue.running == 0)
        assert second.status == "queued"  # others were served a moment ago
        queue.add(third)
        engine.await_start()  # the batch is full
        engine.go.release()
        wait_until(lambda: third.is_over)
        assert engine.batches[1] == [second, third]
        wait_until(lambda: not queue.busy)
        fourth, fifth = job_of(), job_of()  # of the clients that were just served
        queue.add(fourth)
        queue.add(fifth)
        engine.await_start()
        engine.go.release()
        assert engine.batches[2] == [fourth, fifth]


def test_full_queue_and_stopped_queue_take_no_job() -> None:
    engine = Engine()
    with queue_of(engine, max_queue=2) as queue:
        queue.add(job_of())
        engine.await_start()
        kept = [job_of(), job_of()]
        for job in kept:
            queue.add(job)
        with pytest.raises(QueueFullError) as caught:
            queue.add(job_of())
        assert caught.value.retry_after >= 1 and "2 jobs wait" in str(caught.value)
        assert queue.cancel(kept[0])
        queue.add(job_of())  # its place is free at once
    with pytest.raises(ShuttingDownError):
        queue.add(job_of())


def test_jobs_that_wait_hold_a_limited_amount_of_images() -> None:
    engine = Engine()
    with queue_of(engine, max_held=100) as queue:
        queue.add(job_of())
        engine.await_start()
        for held in (90, 10, 0):  # the first one always fits
            job = job_of()
            job.held = held
            queue.add(job)
        job = job_of()
        job.held = 1
        with pytest.raises(QueueFullError, match="100 bytes of images"):
            queue.add(job)


def test_an_error_that_is_kept_holds_no_frames() -> None:
    job = job_of()
    try:
        try:
            raise KeyError("cause")
        except KeyError as cause:
            raise InvalidArgumentError("bad") from cause
    except InvalidArgumentError as error:
        job.fail(error)
    assert job.error is not None and job.error.__traceback__ is None
    assert job.error.__cause__ is None and job.error.__context__ is None


def test_cancelled_jobs_do_not_run() -> None:
    engine = Engine()
    with queue_of(engine, batch_window=0.0) as queue:
        running = job_of()
        queue.add(running)
        engine.await_start()
        waiting = job_of()
        queue.add(waiting)
        assert queue.cancel(waiting, "why") and not queue.cancel(waiting)
        assert waiting.status == "cancelled" and str(waiting.error) == "why"
        assert queue.position(waiting) is None
        assert queue.cancel(running) and running.status == "cancelled"
        engine.go.release()
        after = job_of()
        queue.add(after)
        engine.go.release()
        wait_until(lambda: after.is_over)
        assert [after] in engine.batches and all(waiting not in b for b in engine.batches)
        assert running.status == "cancelled"  # and not done


def test_jobs_that_are_too_late_fail() -> None:
    engine = Engine()
    with queue_of(engine, batch_window=0.0) as queue:
        running, waiting = job_of(timeout=0.01), job_of("b", timeout=0.01)
        queue.add(running)
        queue.add(waiting)
        wait_until(lambda: running.is_over and waiting.is_over)
        for job in (running, waiting):
            assert job.status == "failed" and isinstance(job.error, DeadlineError)
            assert "within 0.01 s" in str(job.error)


def test_closing_lets_jobs_end_and_then_cancels_them() -> None:
    engine = Engine()
    with queue_of(engine, batch_window=0.0) as queue:
        job, other = job_of(), job_of("b")
        queue.add(job)
        queue.add(other)
        engine.await_start()
        closing = threading.Thread(target=queue.close, args=(PATIENCE,))
        closing.start()
        wait_until(lambda: queue.is_closing)
        engine.go.release()
        engine.go.release()
        closing.join(PATIENCE)
        assert job.status == other.status == "done"
    with queue_of(engine := Engine()) as queue:
        job = job_of()
        queue.add(job)
        engine.await_start()
        queue.close(0.0)
        assert job.status == "cancelled" and isinstance(job.error, JobCancelledError)


def test_jobs_that_ended_are_forgotten() -> None:
    def run(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.succeed([], [], {})

    with queue_of(run, keep_jobs=2) as queue:
        jobs = [job_of() for _ in range(5)]
        for job in jobs:
            queue.add(job)
            wait_until(lambda job=job: job.is_over)
        wait_until(lambda: len(queue.jobs()) == 2)
        assert queue.jobs() == jobs[-2:]
        with pytest.raises(JobNotFoundError):
            queue.job(jobs[0].id)


def test_cancelled_jobs_push_out_no_results() -> None:
    engine = Engine()
    with queue_of(engine, keep_jobs=2, batch_window=0.0) as queue:
        done = job_of()
        queue.add(done)
        engine.go.release()
        wait_until(lambda: done.is_over)
        queue.add(job_of())
        wait_until(lambda: len(engine.batches) == 2)
        others = [job_of("b") for _ in range(5)]
        for job in others:
            queue.add(job)
            queue.cancel(job)
        wait_until(lambda: len(queue.jobs()) == 4)  # this one, the one that runs, and two
        assert queue.job(done.id) is done and queue.jobs()[2:] == others[3:]


def test_events_reach_every_listener_and_a_slow_one_misses_steps_alone() -> None:
    async def read(job: Job, slowly: bool) -> list[JobEvent]:
        found = []
        async for event in events(job):
            found.append(event)
            if slowly and len(found) == 1:
                await asyncio.to_thread(run, job)
        return found

    def run(job: Job) -> None:
        job.begin()
        for step in range(1, 101):
            job.note_step(step, 100, 1.0)
        job.fail(InvalidArgumentError("bad"))

    job = job_of()
    found = asyncio.run(read(job, slowly=True))
    assert found[0].kind == "status" and found[-1].kind == "failed"
    assert len(found) <= MOST_WAITING + 2
    assert [e.step for e in found] == sorted(e.step for e in found)
    again = asyncio.run(read(job, slowly=False))
    assert [event.kind for event in again] == ["failed"]


def test_an_end_counts_once_whoever_comes_first() -> None:
    ended = []

    class Observer(NoObserver):
        def ended(self, job: Job) -> None:
            ended.append(job.status)

    engine = Engine()
    queue = JobQueue(engine, lambda job: None, ServerSettings(), Observer())
    queue.start()
    job = job_of()
    queue.add(job)
    engine.await_start()
    threads = [threading.Thread(target=queue.cancel, args=(job,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    engine.go.release()
    for thread in threads:
        thread.join()
    wait_until(lambda: not queue.busy)
    assert len(ended) == 1
    queue.close(0.0)


def test_time_is_not_spent_while_nothing_waits() -> None:
    with queue_of(Engine()):
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.2


def test_a_client_alone_never_waits_for_others() -> None:
    def run(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.succeed([], [], {})

    with queue_of(run, batch_window=10 * PATIENCE) as queue:
        for _ in range(50):
            job = job_of()
            queue.add(job)
            wait_until(lambda job=job: job.is_over)


def test_cancelling_ends_the_call_that_nobody_waits_for() -> None:
    stopped = threading.Event()
    started = threading.Semaphore(0)

    def run(jobs: Sequence[Job]) -> None:
        with CANCEL.during(stopped.set):  # as an engine does
            started.release()
            assert stopped.wait(PATIENCE)
        for job in jobs:
            job.succeed([], [], {})

    with CANCEL.during(lambda: others.append(1)), queue_of(run, max_batch=2) as queue:
        others: list[int] = []
        first, second = job_of(), job_of()
        with queue._changed:  # both are there when the thread looks
            queue.add(first)
            queue.add(second)
        assert started.acquire(timeout=PATIENCE)
        assert queue.cancel(first)
        assert not stopped.is_set()  # another client's job is in the batch
        assert queue.cancel(second)
        assert stopped.wait(PATIENCE)
        wait_until(lambda: not queue.busy)
        assert others == []  # calls of other threads go on


def test_jobs_do_not_wait_for_clients_that_were_not_served() -> None:
    engine = Engine()
    with queue_of(engine, batch_window=3.0, max_batch=4) as queue:
        running = job_of()
        queue.add(running)
        engine.await_start()
        coming = job_of("b")
        queue.add(coming)
        coming.created -= 3.0  # it waited long enough
        queue.cancel(running)
        engine.go.release()
        wait_until(lambda: coming.started)
        assert coming.started is not None and running.ended is not None
        assert coming.started - running.ended < 3.0


def test_an_engine_that_fails_ends_no_thread_of_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Engine()
    with queue_of(engine, batch_window=0.0) as queue:
        free, failures = queue._engines.free, iter([RuntimeError("no engine")])

        def fails_first(*arguments: Any) -> Any:
            for error in failures:
                raise error
            return free(*arguments)

        queue._engines.free = fails_first  # type: ignore[method-assign]
        job = job_of()
        queue.add(job)
        engine.go.release()
        wait_until(lambda: job.status == "done")
        assert "no engine" in caplog.text and not queue._engines_awaited
