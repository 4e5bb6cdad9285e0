"""Runs the batches of a queue that lives in another process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from sdexport.engines.exit_actions import CANCEL
from sdexport.server.job_runner import JobRunner
from sdexport.server.jobs import CANCELLED, ENDED, STEP, Job, JobEvent
from sdexport.server.model_store import ModelStore
from sdexport.server.server_errors import JobCancelledError
from sdexport.server.worker_messages import JobEnded, Message, SentJob, StepDone


class BatchWorker:
    """Generates images outside of the event loop, one batch at a time.

    Args:
      models: opens the pipelines.
    """

    def __init__(self, models: ModelStore) -> None:
        self.models = models
        self._run = JobRunner(models)
        self._thread = ThreadPoolExecutor(1, "jobs")

    def start(self, *, warm_up: bool = False) -> None:
        """Open the first model.

        Args:
          warm_up: whether an image is generated with it.
        Raises: see load_pipeline and Pipeline.warm_up.
        """
        pipeline = self.models.open(self.models.models[0])
        if warm_up:
            pipeline.warm_up()
        else:
            pipeline.open_ahead(pipeline.package.family.prompt_components)

    async def in_thread(self, call: Callable[[], object]) -> None:
        """Call a function in the thread that runs batches, when it is free."""
        await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def batch(self, sent: Sequence[SentJob]) -> AsyncGenerator[Message]:
        """Run jobs together, and say what happens to them until all have ended.

        Whoever closes the generator, or cancels the task that reads it, cancels the jobs; it ends
        when the engine is free.
        """
        loop = asyncio.get_running_loop()
        messages: asyncio.Queue[Message | None] = asyncio.Queue()

        def put(message: Message | None) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(messages.put_nowait, message)

        def run() -> None:
            threads.append(threading.get_ident())
            try:
                self._run(jobs)
            finally:
                threads.clear()
                put(None)

        threads: list[int] = []
        jobs = [each.received() for each in sent]
        for place, job in enumerate(jobs):
            job.begin()
            job.listen(partial(_tell, put, place, job))
        running = asyncio.ensure_future(self.in_thread(run))
        try:
            while (message := await messages.get()) is not None:
                yield message
        finally:
            for job in jobs:
                job.cancel(JobCancelledError("nobody waits for the job"))
            for thread in threads:
                CANCEL.run(thread)
            with suppress(Exception):
                await asyncio.shield(running)

    def close(self) -> None:
        """Close the models when the present batch has ended."""
        self._thread.shutdown()
        self.models.close()


def _tell(put: Callable[[Message], object], place: int, job: Job, event: JobEvent) -> None:
    """Send what happened to a job; nothing of what the reader itself has cancelled."""
    if event.kind == STEP:
        put(StepDone(place, event.step, event.steps, event.timestep or 0.0, event.preview))
    elif event.kind in ENDED and event.kind != CANCELLED:
        put(JobEnded.of(job, place))
