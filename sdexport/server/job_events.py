"""The events of a job as an asynchronous iterator, for clients of any speed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress

from sdexport.server.jobs import ENDED, STEP, Job, JobEvent

MOST_WAITING = 32
"""Events that wait for a slow client; of more, the oldest steps are left out."""


async def events(job: Job) -> AsyncGenerator[JobEvent]:
    """What happens to a job: its present state, then every event up to its end.

    A client that reads slowly misses steps, never the end.
    """
    loop = asyncio.get_running_loop()
    waiting: deque[JobEvent] = deque()
    arrived = asyncio.Event()

    def put(event: JobEvent) -> None:
        if len(waiting) >= MOST_WAITING:
            oldest = next((each for each in waiting if each.kind == STEP), waiting[0])
            waiting.remove(oldest)
        waiting.append(event)
        arrived.set()

    def listener(event: JobEvent) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(put, event)

    put(job.listen(listener))
    try:
        while True:
            while waiting:
                event = waiting.popleft()
                yield event
                if event.kind in ENDED:
                    return
            arrived.clear()
            await arrived.wait()
    finally:
        job.ignore(listener)
