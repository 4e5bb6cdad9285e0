"""Tensors in, tensors out: one Session protocol over every inference engine."""

from sdexport.engines.backends import (
    AUTO,
    BACKENDS,
    PLAN_BACKENDS,
    PREPARED_BACKEND,
    choose,
    open_session,
)
from sdexport.engines.errors import EngineError
from sdexport.engines.session import Session, SessionBase, TensorSpec, check_feeds

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
