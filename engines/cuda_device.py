"""CUDA through cuda-bindings: streams, memory and graphs, every call checked.

    gpu(), absent()     the GPU, or why none can be used
    Stream              a queue of work
    DeviceBuffer        memory on the device
    PinnedBuffer        host memory that the device reads and writes directly
    Graph               captured work that can be launched repeatedly

Objects that own device resources must be closed; closing twice is allowed.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.engines.errors import (
    EngineError,
    InvalidArgumentError,
    MissingDependencyError,
    engine_error,
)
from sdexport.engines.messages import import_failure, shown

ALIGNMENT = 256


@functools.cache
def runtime() -> Any:
    """The module of CUDA's runtime functions.

    Raises: MissingDependencyError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise MissingDependencyError(
            "cuda-bindings is not installed; run: pip install 'cuda-bindings>=12.9'"
            f"{import_failure(error)}"
        ) from error
    return module


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of CUDA's runtime; returns its results without the status, or None.

    Raises: EngineError: the status is an error; the message has CUDA's text.
    """
    status, *values = function(*arguments)
    if int(status) != 0:
        name = getattr(function, "__name__", "CUDA")
        raise engine_error(f"{name}: {_error_text(status)}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _error_text(status: Any) -> str:
    rt = runtime()
    text = rt.cudaGetErrorString(status)[1]
    decoded = text.decode() if isinstance(text, bytes) else str(text)
    return f"{decoded} ({getattr(status, 'name', status)})"


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability such as "8.9", and bytes of memory."""

    name: str
    compute_capability: str
    memory: int


def check_device(device: object) -> None:
    """Raises: InvalidArgumentError: it is not the number of a GPU."""
    if isinstance(device, bool) or not isinstance(device, int) or device < 0:
        raise InvalidArgumentError(f"device must be the number of a GPU, got {shown(device)}")


def gpu(device: int = 0) -> Gpu:
    """The GPU with that number.

    Raises: EngineError: there is none, or the driver is too old. InvalidArgumentError: the number
      is not one. MissingDependencyError: cuda-bindings is not installed.
    """
    check_device(device)
    rt = runtime()
    try:
        count = call(rt.cudaGetDeviceCount)
    except EngineError as error:
        raise EngineError(f"no NVIDIA GPU can be used: {error}{_driver_hint()}") from error
    if device >= count:
        raise EngineError(f"there is no GPU {device}; this machine has {count}")
    properties = call(rt.cudaGetDeviceProperties, device)
    name = properties.name
    return Gpu(
        name.decode() if isinstance(name, bytes) else str(name),
        f"{properties.major}.{properties.minor}",
        int(properties.totalGlobalMem),
    )


def absent() -> str:
    """Why no GPU can be used; "" if one can."""
    try:
        gpu()
    except (EngineError, ImportError) as error:
        return str(error)
    return ""


def _driver_hint() -> str:
    rt = runtime()
    driver, needed = rt.cudaDriverGetVersion()[1], rt.cudaRuntimeGetVersion()[1]
    if not driver:
        return "; no NVIDIA driver is installed"
    if driver // 1000 < needed // 1000:
        return (
            f"; the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, "
            f"CUDA {needed // 1000}.0 or later is needed"
        )
    return ""


def free_memory() -> int:
    """Bytes of memory that are free on the GPU of this thread."""
    free, _ = call(runtime().cudaMemGetInfo)
    return int(free)


def use_device(device: int) -> None:
    """Use that GPU for this thread's calls."""
    call(runtime().cudaSetDevice, device)


class Stream:
    """A stream that does not wait for others. uploaded: bytes copied to the device so far."""

    def __init__(self) -> None:
        rt = runtime()
        self.uploaded = 0
        self._handle: Any = call(rt.cudaStreamCreateWithFlags, rt.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """CUDA's own handle, for other libraries; only before `close`."""
        return int(self._handle)

    def synchronize(self) -> None:
        """Wait until all work is done; raises errors of earlier work."""
        call(runtime().cudaStreamSynchronize, self._handle)

    def upload(self, target: DeviceBuffer, source: PinnedBuffer, size: int) -> None:
        """Queue a copy of `size` bytes to the device."""
        self.uploaded += size
        self._copy(target.address, source.address, size, "cudaMemcpyHostToDevice")

    def download(self, target: PinnedBuffer, source: DeviceBuffer, size: int) -> None:
        """Queue a copy of `size` bytes to the host."""
        self._copy(target.address, source.address, size, "cudaMemcpyDeviceToHost")

    def duplicate(self, target: DeviceBuffer, source: DeviceBuffer, size: int) -> None:
        """Queue a copy of `size` bytes on the device."""
        self._copy(target.address, source.address, size, "cudaMemcpyDeviceToDevice")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        rt = runtime()
        direction = getattr(rt.cudaMemcpyKind, kind)
        call(rt.cudaMemcpyAsync, target, source, size, direction, self._handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` queues in this stream, without running it.

        Raises: EngineError: the work cannot be captured; the stream stays usable.
        """
        rt = runtime()
        mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(rt.cudaStreamBeginCapture, self._handle, mode)
        try:
            work()
        except BaseException:
            rt.cudaStreamEndCapture(self._handle)  # its status is that of the failed work
            rt.cudaGetLastError()
            raise
        return Graph(call(rt.cudaStreamEndCapture, self._handle))

    def close(self) -> None:
        """Destroy the stream; closing twice is allowed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            call(runtime().cudaStreamDestroy, handle)


class Graph:
    """Captured work, ready to launch; it destroys the captured graph."""

    def __init__(self, captured: Any) -> None:
        rt = runtime()
        self._handle: Any = None
        try:
            self._handle = call(rt.cudaGraphInstantiate, captured, 0)
        finally:
            call(rt.cudaGraphDestroy, captured)

    def launch(self, stream: Stream) -> None:
        """Queue the work in a stream."""
        call(runtime().cudaGraphLaunch, self._handle, stream._handle)

    def close(self) -> None:
        """Destroy the graph; closing twice is allowed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            call(runtime().cudaGraphExecDestroy, handle)


class _Buffer:
    """Memory of at least `size` bytes, from a pair of CUDA functions."""

    _allocate = ""
    _free = ""

    def __init__(self, size: int) -> None:
        self.size = max(size, ALIGNMENT)
        self._pointer: Any = call(getattr(runtime(), self._allocate), self.size)

    @property
    def address(self) -> int:
        """The first address; only before `close`."""
        return int(self._pointer)

    def close(self) -> None:
        """Free the memory; closing twice is allowed."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            call(getattr(runtime(), self._free), pointer)


class DeviceBuffer(_Buffer):
    """Memory on the device."""

    _allocate, _free = "cudaMalloc", "cudaFree"


class PinnedBuffer(_Buffer):
    """Pinned host memory; `view` returns it as an array."""

    _allocate, _free = "cudaMallocHost", "cudaFreeHost"

    def view(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        """The first bytes as an array of a shape and dtype; only valid until `close`."""
        count = math.prod(shape)
        raw = (ctypes.c_byte * (count * np.dtype(dtype).itemsize)).from_address(self.address)
        return np.frombuffer(memoryview(raw), np.dtype(dtype), count).reshape(shape)
