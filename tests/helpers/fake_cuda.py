"""CUDA's runtime in host memory: what a session asks of it can be watched.

Every call goes to the function of cuda-bindings first, if that is installed and finds no driver: it
checks types and ranges, and returns an error. So an argument that the real one rejects fails here.
"""

from __future__ import annotations

import ctypes
import enum
import threading
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    from cuda.bindings import runtime as real
except ImportError:
    real = None
if real is not None and int(real.cudaGetDeviceCount()[0]) == 0:
    real = None  # a driver is there: the real functions would act
TOTAL_MEMORY = 8 * 2**30
"""Bytes of the stand-in's GPUs."""


class Status(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815


class Kind(enum.IntEnum):
    """Directions of a copy, where cuda-bindings are not installed."""

    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815
    cudaMemcpyDeviceToDevice = 3  # noqa: N815


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815


def _handle(name: str, number: int) -> Any:
    """A handle of the type that the real function returns."""
    return number if real is None else getattr(real, name)(number)


class FakeCuda:
    """CUDA's runtime functions.

    Attributes:
      counts: calls of each. checked: those that the real function took before.
      fails: function name -> the status that it returns.
      bytes: copied, by direction ("h2d", "d2h", "d2d"). open: streams and graphs not destroyed.
      free: bytes that are free at most. devices: how many GPUs there are.
    """

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = Kind if real is None else real.cudaMemcpyKind  # noqa: N815
    cudaStreamCaptureMode = CaptureMode if real is None else real.cudaStreamCaptureMode  # noqa: N815

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.kinds: dict[int, tuple[str, int]] = {}
        self.counts: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.fails: dict[str, Status] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.open: set[tuple[str, int]] = set()
        self.compute_capability = (8, 9)
        self.name = b"Fake GPU"
        self.devices = 1
        self.free = TOTAL_MEMORY
        self._numbers = iter(range(0x1000, 2**31))
        self._thread = threading.local()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or isinstance(value, (type, int)):
            return value

        def counted(*arguments: Any) -> Any:
            self.counts[name] += 1
            if real is not None:
                getattr(real, name)(*arguments)
                self.checked[name] += 1
            if name in self.fails:
                if name == "cudaStreamEndCapture":
                    self.capturing = None
                return (self.fails[name], None)
            return value(*arguments)

        counted.__name__ = name
        return counted

    @property
    def device(self) -> int:
        """The GPU of this thread."""
        return getattr(self._thread, "device", 0)

    def cudaGetErrorString(self, status: Status) -> Any:  # noqa: N802
        return Status.cudaSuccess, f"words for {status.name}".encode()

    def cudaGetLastError(self) -> Any:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return Status.cudaSuccess, self.devices

    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return Status.cudaSuccess, 12040

    def cudaRuntimeGetVersion(self) -> Any:  # noqa: N802
        return Status.cudaSuccess, 13000

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        major, minor = self.compute_capability
        return Status.cudaSuccess, types.SimpleNamespace(
            name=self.name, major=major, minor=minor, totalGlobalMem=TOTAL_MEMORY
        )

    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        return Status.cudaSuccess, self.free, TOTAL_MEMORY

    def cudaSetDevice(self, device: int) -> Any:  # noqa: N802
        if not 0 <= device < self.devices:
            return (Status.cudaErrorInvalidValue,)
        self._thread.device = device
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        number = next(self._numbers)
        self.open.add(("stream", number))
        return Status.cudaSuccess, _handle("cudaStream_t", number)

    def cudaStreamDestroy(self, stream: Any) -> Any:  # noqa: N802
        self.open.remove(("stream", int(stream)))
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Any) -> Any:  # noqa: N802
        assert self.capturing is None and ("stream", int(stream)) in self.open
        return (Status.cudaSuccess,)

    def _allocate(self, size: int, kind: str) -> Any:
        buffer = (ctypes.c_ubyte * size)(*([0xA5] * min(size, 16)))
        address = ctypes.addressof(buffer)
        self.memory[address], self.kinds[address] = buffer, (kind, self.device)
        return Status.cudaSuccess, address

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        return self._allocate(size, "device")

    def cudaMallocHost(self, size: int) -> Any:  # noqa: N802
        return self._allocate(size, "host")

    def _free(self, address: int, kind: str) -> Any:
        assert self.kinds.pop(address) == (kind, self.device)
        del self.memory[address]
        return (Status.cudaSuccess,)

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        return self._free(address, "device")

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        return self._free(address, "host")

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: Any, stream: Any
    ) -> Any:
        name = {1: "h2d", 2: "d2h", 3: "d2d"}[int(kind)]
        wanted = {"h2d": ("device", "host"), "d2h": ("host", "device"), "d2d": ("device",) * 2}
        assert (self.kinds[target][0], self.kinds[source][0]) == wanted[name]
        assert size <= min(len(self.memory[target]), len(self.memory[source]))
        assert ("stream", int(stream)) in self.open
        self.bytes[name] += size
        ctypes.memmove(target, source, size)
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Any:  # noqa: N802
        self.capturing = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Any) -> Any:  # noqa: N802
        work, self.capturing = self.capturing, None
        assert work is not None
        return Status.cudaSuccess, self._graph("cudaGraph_t", work)

    def _graph(self, kind: str, work: list[Callable[[], None]]) -> Any:
        number = next(self._numbers)
        self.graphs[number] = work
        self.open.add((kind, number))
        return _handle(kind, number)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        return Status.cudaSuccess, self._graph("cudaGraphExec_t", self.graphs[int(graph)])

    def cudaGraphDestroy(self, graph: Any) -> Any:  # noqa: N802
        self.open.remove(("cudaGraph_t", int(graph)))
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> Any:  # noqa: N802
        self.open.remove(("cudaGraphExec_t", int(graph)))
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: Any) -> Any:  # noqa: N802
        assert ("cudaGraphExec_t", int(graph)) in self.open
        for work in self.graphs[int(graph)]:
            work()
        return (Status.cudaSuccess,)

    def array(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32 values in memory of the device."""
        assert self.kinds[address][0] == "device"
        raw = self.memory[address]
        return np.frombuffer(raw, np.float32, int(np.prod(shape))).reshape(shape)
