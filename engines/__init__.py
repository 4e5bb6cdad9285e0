"""Tensors in, tensors out: one Session protocol over every inference engine."""

from engines.session import (
    BACKENDS,
    EngineError,
    Session,
    SessionBase,
    TensorSpec,
    check_feeds,
    open_session,
)

__all__ = [
    "BACKENDS",
    "EngineError",
    "Session",
    "SessionBase",
    "TensorSpec",
    "check_feeds",
    "open_session",
]
