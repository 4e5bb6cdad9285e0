"""What belongs to the request that is being answered: its id, and the room of its body."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""For log records."""


def _nothing() -> None:
    """There is no body."""


RELEASE_BODY: ContextVar[Callable[[], None]] = ContextVar("release_body", default=_nothing)
"""Gives the room of the body back, when it was read and its job waits."""
