"""The streams of a job's events: cancels a job whose clients have gone, and shares the texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any
from weakref import WeakKeyDictionary

from sdexport.server.image_service import ImageService
from sdexport.server.jobs import Job, JobEvent


class EventClients:
    """Counts the event streams of each job.

    A job whose last stream was closed by its client is cancelled after `reconnect_seconds`, unless
    another one is opened. A job whose events were never read runs to its end.
    """

    def __init__(self, service: ImageService) -> None:
        self._service = service
        self._open: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def during(self, job: Job, stream: AsyncGenerator[str]) -> AsyncGenerator[str]:
        """A stream of a job, which counts while it is read."""
        self._open[job.id] = self._open.get(job.id, 0) + 1
        timer = self._timers.pop(job.id, None)
        if timer is not None:
            timer.cancel()
        try:
            async with aclosing(stream):
                async for text in stream:
                    yield text
        finally:
            self._open[job.id] -= 1
            if not self._open[job.id]:
                del self._open[job.id]
                if not job.is_over:
                    self._cancel_later(job)

    def _cancel_later(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        seconds = self._service.settings.reconnect_seconds
        self._timers[job.id] = loop.call_later(seconds, self._cancel, job)

    def _cancel(self, job: Job) -> None:
        self._timers.pop(job.id, None)
        if job.id not in self._open:
            self._service.queue.cancel(job, "the client closed the stream of events")


class EventTexts:
    """Makes the text of an event once for all streams of a job, as previews take time to encode."""

    def __init__(self, make: Callable[[Job, JobEvent], Coroutine[Any, Any, str]]) -> None:
        self._make = make
        self._latest: WeakKeyDictionary[Job, tuple[JobEvent, asyncio.Task[str]]]
        self._latest = WeakKeyDictionary()

    async def of(self, job: Job, event: JobEvent) -> str:
        """The text of an event."""
        known = self._latest.get(job)
        if known is None or known[0] is not event:
            known = event, asyncio.ensure_future(self._make(job, event))
            self._latest[job] = known
        return await asyncio.shield(known[1])
