"""Waiting for a job on behalf of a client, which may go away."""

from __future__ import annotations

import asyncio

from fastapi import Request

from sdexport.server.image_service import ImageService
from sdexport.server.jobs import Job
from sdexport.server.server_errors import JobCancelledError


async def result_for(service: ImageService, job: Job, request: Request) -> Job:
    """Wait until a job is done; it is cancelled if the client closes the connection.

    Raises: the job's error, if it failed or was cancelled.
    """
    waiting = asyncio.ensure_future(service.result(job))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            service.queue.cancel(job, "the client closed the connection")
            raise JobCancelledError("the client closed the connection")
        return await waiting
    finally:
        for task in (waiting, gone):
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
