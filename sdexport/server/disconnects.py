"""Waiting on behalf of a client, which may go away. The request's body must have been read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request

from sdexport.server.server_errors import JobCancelledError

T = TypeVar("T")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client closes the connection.

    Raises: JobCancelledError: the client closed the connection. Whatever `work` raises.
    """
    waiting = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise _gone()
        return waiting.result()
    finally:
        await _end(waiting)
        await _end(gone)


async def items_unless_disconnected(request: Request, items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items of an iterator, for as long as the client is there.

    Raises: JobCancelledError: the client closed the connection.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        while True:
            waiting = asyncio.ensure_future(_next(items))
            try:
                await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    raise _gone()
            finally:
                await _end(waiting)
            found = waiting.result()
            if not found:
                return
            yield found[0]
    finally:
        await _end(gone)


async def _next(items: AsyncIterator[T]) -> list[T]:
    """The next item in a list; an empty list at the end."""
    async for item in items:
        return [item]
    return []


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel a task that is not done, and wait until it has ended."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _disconnected(request: Request) -> None:
    """Return once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _gone() -> JobCancelledError:
    return JobCancelledError("the client closed the connection")
