"""What belongs to the request that is being answered: its id, its client, its body's room."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""For log records."""
CLIENT: ContextVar[str] = ContextVar("client", default="")
"""Who sent it: the number of its key, or its address."""


def _nothing() -> None:
    """There is no body."""


RELEASE_BODY: ContextVar[Callable[[], None]] = ContextVar("release_body", default=_nothing)
"""Gives the room of the body back, when it was read and its job waits."""
