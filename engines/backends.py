"""The inference backends, which of them are installed, and opening a graph with one."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines import cuda_device
from sdexport.engines.errors import EngineError, InvalidArgumentError, MissingDependencyError
from sdexport.engines.messages import one_line, shown
from sdexport.engines.ort.prepared import prepared_graph as prepared
from sdexport.engines.session import Session
from sdexport.engines.session_options import FILE_OPTIONS, check_options
from sdexport.engines.telemetry import import_onnxruntime
from sdexport.engines.trt.library import LIBRARIES

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Backend:
    """Where the function that opens a session is. needs: the module that must be installed."""

    module: str
    function: str
    needs: str


_BACKENDS = {
    "onnxruntime": _Backend("sdexport.engines.ort.cpu_session", "open_onnxruntime", "onnxruntime"),
    "onnxruntime-cuda": _Backend(
        "sdexport.engines.ort.onnxruntime_session", "open_cuda", "onnxruntime"
    ),
    "webgpu": _Backend(
        "sdexport.engines.webgpu.webgpu_session", "WebGpuSession", "onnxruntime_ep_webgpu"
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
"""Backends that run an engine that was built before, their option `plan`."""
PREPARED_BACKEND = prepared.BACKEND
"""The backend that runs a graph prepared for this processor, its option `plan`, if there is one."""
_ON_CPU = ("openvino", "onnxruntime")
"""The fastest first: one UNet step of SD 1.5 at 256x256 on two cores takes 1.4 s and 2.2 s."""
FEW_IMAGES = 3
"""Images up to which the start counts more: OpenVINO compiles SD 1.5 in 15 s and gains 4 to 5 s for
each image over a graph that was prepared for ONNX Runtime."""

PlanOf = Callable[[str], Path | None]
"""The plan of a backend, if there is one."""


def open_session(path: str | Path, backend: str = "onnxruntime", **options: Any) -> Session:
    """Open an ONNX file with one of `BACKENDS`.

    Args:
      path: the .onnx file; its external data is in the same folder.
      backend: "auto" chooses the best installed one and logs its name.
      options: of the backend's session: see ort.cpu_session, ort.onnxruntime_session,
        ov.openvino_session and trt.tensorrt_session.
    Raises: InvalidArgumentError: unknown backend, or an option that it does not have.
      FileNotFoundError: no such file, or no plan. MissingDependencyError: the backend's package is
      not installed (the message names the pip command). EngineError: the file cannot be loaded.
    Example:
        >>> from sdexport import open_session
        >>> with open_session("package/vae_decoder/model.onnx") as session:
        ...     print([f"{spec.name}: {spec}" for spec in session.inputs])
        ['latent_sample: float32 (batch, 4, height, width)']
    """
    check_backend(backend)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}")
    if backend == AUTO:
        plan = options.get("plan")
        backend = choose(plan_of=lambda name: Path(plan) if plan else None)
        _log.info("%s: auto takes %s", path.parent.name or path.stem, backend)
    check_options([backend], set(options) - set(FILE_OPTIONS))
    return _opener(backend)(path, **options)


def check_backend(name: str) -> str:
    """The name itself, if it is one of BACKENDS.

    Raises: InvalidArgumentError: it is not.
    """
    if name not in BACKENDS:
        raise InvalidArgumentError(
            f"unknown backend {shown(name)}; choose one of {', '.join(BACKENDS)}"
        )
    return name


def is_installed(backend: str) -> bool:
    """Whether the library of one of BACKENDS is installed; of "auto", that of any."""
    return any(map(_installed, _BACKENDS)) if backend == AUTO else _installed(backend)


def choose(*, plan_of: PlanOf = lambda backend: None, images: int | None = None) -> str:
    """The best backend that is installed here and can run.

    A TensorRT plan on a GPU comes first, then ONNX Runtime on the GPU, then the CPU: OpenVINO,
    which is the fastest there, then ONNX Runtime. For up to FEW_IMAGES the one of these two comes
    first for which the graph was prepared, as it opens at once. What is installed for a GPU and
    cannot run is logged as a warning, once, with the reason.

    Args:
      plan_of: returns the plan of a backend, if there is one.
      images: how many are going to be generated; None for many.
    Raises: MissingDependencyError: none is installed.
    """
    for backend in available(plan_of=plan_of, images=images):
        _log.info("auto: %s", _reason(backend, plan_of, images))
        return backend
    raise MissingDependencyError(
        "no inference engine is installed; run: pip install 'sdexport[cpu]'"
    )


def _reason(backend: str, plan_of: PlanOf, images: int | None) -> str:
    """Why `choose` takes a backend, in words."""
    if backend not in _ON_CPU:
        return f"{backend} comes first, as it can run on this GPU"
    how_many = "many images" if images is None else f"{images} image{'s' * (images != 1)}"
    if _starts_count(images) and plan_of(backend):
        return f"for {how_many} {backend} comes first, as its graph is prepared and opens at once"
    return f"for {how_many} {backend} comes first, the fastest of those that are installed"


def _starts_count(images: int | None) -> bool:
    return images is not None and images <= FEW_IMAGES


def available(*, plan_of: PlanOf = lambda backend: None, images: int | None = None) -> list[str]:
    """Every backend that is installed here and can run, the best first; see `choose`."""
    on_gpu = []
    plans = {backend: plan_of(backend) for backend in PLAN_BACKENDS if _installed(backend)}
    candidates: list[tuple[str, Path | None]] = [
        (backend, plan) for backend, plan in plans.items() if plan is not None and plan.is_file()
    ]
    if _installed("onnxruntime") and _has_cuda_provider():
        candidates.append(("onnxruntime-cuda", None))
    absent = cuda_device.absent() if candidates else ""
    for backend, plan in candidates:
        if reason := absent or _unusable(backend, plan):
            _warn_once(f"auto does not take {backend}: {one_line(reason)}")
        else:
            on_gpu.append(backend)
    on_cpu = [backend for backend in _ON_CPU if _installed(backend)]
    if _starts_count(images):
        on_cpu.sort(key=lambda backend: plan_of(backend) is None)
    return [*on_gpu, *on_cpu]


def _unusable(backend: str, plan: Path | None) -> str:
    """Why a backend cannot run on this machine's GPU, in words; "" if it can."""
    if plan is None:
        from sdexport.engines.ort.cuda_libraries import missing_libraries

        return missing_libraries()
    from sdexport.engines.trt.plan import gpu_misfit

    try:
        return gpu_misfit(plan, backend, cuda_device.gpu())
    except (EngineError, ImportError) as error:
        return str(error)


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


def _installed(backend: str) -> bool:
    return importlib.util.find_spec(_BACKENDS[backend].needs) is not None


def _has_cuda_provider() -> bool:
    onnxruntime = import_onnxruntime()
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _opener(backend: str) -> Callable[..., Session]:
    entry = _BACKENDS[backend]
    opener: Callable[..., Session] = getattr(importlib.import_module(entry.module), entry.function)
    return opener
