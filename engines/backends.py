"""Which inference engines there are, which are installed here, and opening a graph with one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines import cuda_device
from sdexport.engines.ort.prepared import prepared_graph as prepared
from sdexport.engines.session import Session
from sdexport.engines.trt.library import LIBRARIES

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Backend:
    """Where the function is that opens a session; needs: the module that must be installed."""

    module: str
    function: str
    needs: str


_BACKENDS = {
    "onnxruntime": _Backend(
        "sdexport.engines.ort.prepared.prepared_session", "open_onnxruntime", "onnxruntime"
    ),
    "onnxruntime-cuda": _Backend(
        "sdexport.engines.ort.onnxruntime_session", "open_cuda", "onnxruntime"
    ),
    "openvino": _Backend("sdexport.engines.ov.openvino_session", "OpenVinoSession", "openvino"),
    "tensorrt": _Backend("sdexport.engines.trt.tensorrt_session", "open_tensorrt", "tensorrt"),
    "tensorrt-rtx": _Backend(
        "sdexport.engines.trt.tensorrt_session", "open_tensorrt_rtx", "tensorrt_rtx"
    ),
}
AUTO = "auto"
BACKENDS = (*_BACKENDS, AUTO)
PLAN_BACKENDS = tuple(LIBRARIES)
"""Backends that run a plan which was built before; their sessions take `plan`."""
PREPARED_BACKEND = prepared.BACKEND
"""The backend that runs a graph prepared for this processor where there is one, as its `plan`."""
_ON_CPU = ("openvino", "onnxruntime")
"""The faster first: one UNet step of SD 1.5 at 256x256 on two cores 1.4 s against 2.2 s."""


def open_session(path: str | Path, backend: str = "onnxruntime", **options: Any) -> Session:
    """Open an ONNX file with one of `BACKENDS`.

    Args:
      path: the .onnx file; external data is looked up beside it.
      backend: "auto" takes the best that is installed and logs which.
      options: passed to the backend's session class.
    Raises: ValueError: unknown backend, or an option that it does not take. FileNotFoundError: no
      such file, or no plan. ImportError: the backend's package is not installed (the message names
      the pip command). EngineError: the file cannot be loaded.
    """
    check_backend(backend)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}")
    if backend == AUTO:
        plan = options.get("plan")
        backend = choose(plan_of=lambda name: Path(plan) if plan else None)
        _log.info("%s: auto takes %s", path.parent.name or path.stem, backend)
    factory = _factory(backend)
    taken = option_names(backend)
    for option in options:
        if option not in taken:
            raise ValueError(f"{backend} takes no option '{option}'; it takes {', '.join(taken)}")
    return factory(path, **options)


def check_backend(name: str) -> str:
    """Raises: ValueError: not one of BACKENDS."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend '{name}'; choose one of {', '.join(BACKENDS)}")
    return name


def option_names(backend: str) -> list[str]:
    """Options of a backend's sessions.

    Raises: ImportError: it is not installed.
    """
    return list(inspect.signature(_factory(backend)).parameters)[1:]


def choose(*, plan_of: Callable[[str], Path | None] = lambda backend: None) -> str:
    """The best backend that is installed here and can run.

    A TensorRT plan on a GPU comes first, then ONNX Runtime on the GPU, then the CPU.

    Args:
      plan_of: the plan of a backend, if there is one.
    Raises: ImportError: none is installed.
    """
    for backend in available(plan_of=plan_of):
        return backend
    raise ImportError("no inference engine is installed; run: pip install 'sdexport[cpu]'")


def available(*, plan_of: Callable[[str], Path | None] = lambda backend: None) -> list[str]:
    """Every backend that is installed here and can run, the best first; see `choose`."""
    plans = [b for b in PLAN_BACKENDS if _installed(b) and _is_file(plan_of(b))]
    on_cuda = _installed("onnxruntime") and _has_cuda_provider()
    if (plans or on_cuda) and not cuda_device.absent():
        plans += ["onnxruntime-cuda"] * on_cuda
    else:
        plans = []
    return [*plans, *(backend for backend in _ON_CPU if _installed(backend))]


def _installed(backend: str) -> bool:
    return importlib.util.find_spec(_BACKENDS[backend].needs) is not None


def _is_file(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _has_cuda_provider() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _factory(backend: str) -> Callable[..., Session]:
    entry = _BACKENDS[backend]
    found: Callable[..., Session] = getattr(importlib.import_module(entry.module), entry.function)
    return found
