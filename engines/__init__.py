"""Tensors in, tensors out: one Session protocol over every inference engine."""

from engines.backends import AUTO, BACKENDS, PLAN_BACKENDS, PREPARED_BACKEND, choose, open_session
from engines.session import (
    EngineError,
    Session,
    SessionBase,
    TensorSpec,
    check_feeds,
)

__all__ = [
    "AUTO",
    "BACKENDS",
    "PLAN_BACKENDS",
    "PREPARED_BACKEND",
    "EngineError",
    "Session",
    "SessionBase",
    "TensorSpec",
    "check_feeds",
    "choose",
    "open_session",
]
