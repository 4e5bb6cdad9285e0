"""Run ONNX graphs with any inference engine: named arrays in, named arrays out.

This package knows nothing of diffusion models and can be used alone, for any ONNX file. Names
are imported when they are first used, and a backend's library when a graph is opened with it.

    open_session(path, backend)   open a graph as a `Session`
    choose(), BACKENDS            the best installed backend, and all names
    Session                       inputs, outputs, run, bind, trim, close
    EngineError                   the engine failed; see sdexport.engines.errors for the others

Example:
    >>> import numpy as np
    >>> from sdexport.engines import open_session
    >>> with open_session("package/vae_decoder/model.onnx", "onnxruntime") as session:
    ...     [latents] = session.inputs
    ...     outputs = session.run({latents.name: np.zeros((1, 4, 8, 8), np.float32)})
    >>> print(latents.name, latents)
    latent_sample float32 (batch, 4, height, width)
    >>> outputs["sample"].shape
    (1, 3, 64, 64)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_NAMES = {
    "errors": ("EngineError",),
    "session": ("Session", "SessionBase", "TensorSpec", "check_feeds"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sdexport.engines' has no attribute {name!r}")
    home = next((module for module, names in _NAMES.items() if name in names), "backends")
    return getattr(import_module(f"sdexport.engines.{home}"), name)
