"""WebGPU's execution provider: registered once, its GPU started and described once per process.

ONNX Runtime's provider has one GPU per process. It is not safe to use from several threads, not
even through different sessions: everything that calls it holds LOCK.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.engines.errors import (
    EngineError,
    InvalidArgumentError,
    MissingDependencyError,
    engine_error,
)
from sdexport.engines.messages import import_failure, one_line, shown
from sdexport.engines.telemetry import import_onnxruntime
from sdexport.engines.webgpu.vulkan_devices import vulkan_devices

_log = logging.getLogger(__name__)

LOCK = threading.RLock()
DEVICES = ("high-performance", "low-power")
"""Which GPU is used where there are several: WebGPU's power preference. The first is default."""
PROVIDER = "WebGpuExecutionProvider"
SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
"""Environment variable of the provider: 1 lets it use a device that computes on the CPU."""
_REGISTERED_AS = "sdexport-webgpu"
_GPU = 1
"""OrtHardwareDeviceType of a GPU."""
_HALF_SUM = (
    b'\x08\x07:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\n\x12\x04\n'
    b"\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\n\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x0e"
)
"""An ONNX model: y = x + x, float16 of shape (1)."""


@dataclass(frozen=True)
class StartedGpu:
    """The GPU of this process.

    name: "" where it is not known. software: whether it computes on the CPU. float16: whether its
    shaders can compute in float16.
    """

    device: str
    name: str
    software: bool
    float16: bool


def check_device(device: object) -> str:
    """The device itself, if it is one of DEVICES. Raises: InvalidArgumentError: it is not."""
    if device not in DEVICES:
        raise InvalidArgumentError(
            f"webgpu: device must be {' or '.join(DEVICES)}, got {shown(device)}; WebGPU chooses "
            "the GPU by that, and knows no numbers"
        )
    return str(device)


def start(device: str = DEVICES[0]) -> StartedGpu:
    """Start the GPU, or return the one that this process has started.

    Args:
      device: one of DEVICES.
    Raises: InvalidArgumentError: another device was started. EngineError: there is no GPU, no
      driver for it, or it does not start. MissingDependencyError: a package is not installed.
    """
    with LOCK:
        gpu = _started(_first_device(device))
    if gpu.device != device:
        raise InvalidArgumentError(
            f"webgpu: this process has started the {gpu.device} GPU, and uses one only; "
            f"start another process for device={device}"
        )
    return gpu


def computes_float16() -> bool:
    """Whether the GPU that this process has started, or would start, computes in float16."""
    try:
        with LOCK:
            return _started(_first_device(DEVICES[0])).float16
    except (EngineError, ImportError):
        return False


def open_graph(model: str | bytes, options: Any, device: str) -> Any:
    """ONNX Runtime's own session of a graph on the GPU; nodes without a kernel run on the CPU.

    Args:
      model: path, or the serialised model. options: a SessionOptions without providers.
    Raises: what ONNX Runtime raises.
    """
    with LOCK:
        settings = {"powerPreference": device}
        options.add_provider_for_devices([_provider_device()], settings)
        # Without this, a GPU that does not start is replaced by the CPU, with a note on stdout.
        return _onnxruntime().InferenceSession(model, options, enable_fallback=0)


_chosen: list[str] = []


def _first_device(device: str) -> str:
    """The device that was started first in this process."""
    return _chosen[0] if _chosen else device


@functools.cache
def _started(device: str) -> StartedGpu:
    provider_device = _provider_device()
    name, software = _adapter(provider_device)
    options = _onnxruntime().SessionOptions()
    options.log_severity_level = 4
    try:
        session = open_graph(_HALF_SUM, options, device)
    except MemoryError:
        raise
    except Exception as error:
        raise engine_error(f"webgpu: the GPU does not start: {_reason(error)}") from error
    _chosen.append(device)
    if software:
        _log.warning("webgpu: %s computes on the CPU: it is for tests", name or "this device")
    return StartedGpu(device, name, software, _adds_halves(session))


def _adds_halves(session: Any) -> bool:
    try:
        (total,) = session.run(None, {"x": np.full(1, 1.5, np.float16)})
    except MemoryError:
        raise
    except Exception as error:
        if "f16" not in str(error):
            raise engine_error(f"webgpu: the GPU does not compute: {one_line(error)}") from error
        return False
    return bool(total[0] == 3)


def _reason(error: Exception) -> str:
    text = one_line(error)
    if "No supported adapters" in text:
        return "its driver lacks what WebGPU needs; a newer one may have it"
    return text


def _adapter(provider_device: Any) -> tuple[str, bool]:
    """Name of the device, where it can be known, and whether it computes on the CPU.

    Raises: EngineError: there is no device.
    """
    if sys.platform in ("win32", "darwin"):
        return "", not _is_gpu(provider_device)
    try:
        devices = vulkan_devices()
    except OSError as error:
        raise EngineError(
            "webgpu: the Vulkan loader is not installed; install libvulkan1 (Debian, Ubuntu), "
            f"vulkan-loader (Fedora) or vulkan-icd-loader (Arch): {one_line(error)}"
        ) from error
    if not devices:
        raise EngineError(
            "webgpu: Vulkan finds no GPU; install its driver: mesa-vulkan-drivers for AMD and "
            "Intel, NVIDIA's own with its Vulkan part"
        )
    gpus = [each.name for each in devices if not each.software]
    return (gpus or [devices[0].name])[0] if len(gpus) < 2 else "", not gpus


def _is_gpu(provider_device: Any) -> bool:
    return int(provider_device.device.type) == _GPU


@functools.cache
def _provider_device() -> Any:
    """The device that sessions are opened for; WebGPU chooses among several GPUs itself.

    Raises: EngineError: there is none. MissingDependencyError: a package is not installed.
    """
    onnxruntime, plugin = _onnxruntime(), _plugin()
    if PROVIDER not in onnxruntime.get_available_providers():  # twice would crash the process
        try:
            onnxruntime.register_execution_provider_library(
                _REGISTERED_AS, plugin.get_library_path()
            )
        except MemoryError:
            raise
        except Exception as error:
            raise EngineError(
                f"webgpu: ONNX Runtime {onnxruntime.__version__} cannot load "
                f"onnxruntime-ep-webgpu: {one_line(error)}"
            ) from error
    devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name == PROVIDER]
    if not devices:
        allowed = "" if os.environ.get(SOFTWARE) else f"; {SOFTWARE}=1 allows a software device"
        raise EngineError(f"webgpu: ONNX Runtime finds no GPU on this machine{allowed}")
    return devices[0]


def _onnxruntime() -> Any:
    """Raises: MissingDependencyError: it is not installed, or too old to load plugins."""
    try:
        module = import_onnxruntime()
    except ImportError as error:
        raise _missing("ONNX Runtime", error) from error
    if not hasattr(module, "register_execution_provider_library"):
        raise MissingDependencyError(
            f"webgpu: ONNX Runtime {module.__version__} is too old; "
            "run: pip install --upgrade 'sdexport[webgpu]'"
        )
    return module


def _plugin() -> Any:
    """Raises: MissingDependencyError: it is not installed."""
    try:
        import onnxruntime_ep_webgpu
    except ImportError as error:
        raise _missing("onnxruntime-ep-webgpu", error) from error
    return onnxruntime_ep_webgpu


def _missing(what: str, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"{what} is not installed; run: pip install 'sdexport[webgpu]'{import_failure(error)}"
    )
