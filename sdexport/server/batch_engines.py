"""What runs the batches of a queue: one engine in this process, or several elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from sdexport.engines.exit_actions import CANCEL
from sdexport.server.job_runner import JobRunner
from sdexport.server.jobs import Job
from sdexport.server.model_store import ModelStore

_log = logging.getLogger(__name__)
Run = Callable[[Sequence[Job]], None]
"""Runs jobs together and ends each of them; it does not raise."""


class Engines(Protocol):
    """What runs batches. Safe to use from several threads."""

    @property
    def count(self) -> int:
        """Batches that may run at the same time, at least one."""
        ...

    def free(self, job: Job, is_needed: Callable[[], bool]) -> AbstractContextManager[Run | None]:
        """Wait until the model of a job can run, and hold what runs it for a block.

        Args:
          is_needed: whether jobs wait that have no other engine.
        Returns: None if that was over before an engine was free.
        """
        ...

    def end_surplus(self, model: str | None) -> None:
        """End one wait for a model, as jobs that it was for are over; it asks `is_needed` then."""
        ...

    def interrupt(self, thread: int | None = None) -> None:
        """Cancel what is computed for jobs that are over.

        Args:
          thread: that runs them; None for all.
        """
        ...


class ClosableEngines(Engines, Protocol):
    """The engines of a service."""

    def start(self, begin: Callable[[], None], *, warm_up: bool) -> None:
        """Wait until the first job can run.

        Args:
          begin: called when jobs may be taken.
          warm_up: whether an image is generated with the first model.
        Raises: see load_pipeline and Pipeline.warm_up.
        """
        ...

    def close(self) -> None:
        """Close the models, when nothing runs."""
        ...


class OneEngine:
    """Runs one batch at a time."""

    count = 1

    def __init__(self, run: Run) -> None:
        self._run = run

    def free(self, job: Job, is_needed: Callable[[], bool]) -> AbstractContextManager[Run | None]:
        """What runs the job; no other thread asks for it."""
        return nullcontext(self._run)

    def end_surplus(self, model: str | None) -> None:
        """Nothing, as this engine is always free."""

    def interrupt(self, thread: int | None = None) -> None:
        """Cancel what an engine computes for jobs that are over."""
        CANCEL.run(thread)


class LocalEngine(OneEngine):
    """Runs one batch at a time in this process."""

    def __init__(self, models: ModelStore) -> None:
        super().__init__(JobRunner(models))
        self._models = models

    def start(self, begin: Callable[[], None], *, warm_up: bool) -> None:
        """Open the first model, and take jobs then."""
        pipeline = self._models.open(self._models.models[0])
        if warm_up:
            _log.info("warm-up: %.2f s", pipeline.warm_up())
        else:  # in the background, so that the first job waits less
            pipeline.open_ahead(pipeline.package.family.prompt_components)
        begin()

    def close(self) -> None:
        """Close the models, when nothing runs."""
        self._models.close()
