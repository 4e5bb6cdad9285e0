"""TensorRT and CUDA that compute in host memory: what a session asks of them can be watched.

The "engine" knows one graph, that of a UNet's names and shapes:
out_sample = sample * (1 + t / 1000)
+ the mean of encoder_hidden_states.
"""

from __future__ import annotations

import ctypes
import enum
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package
from sdexport.engines import cuda_device
from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.cache.sidecar import Sidecar, StoredFile, sidecar_path
from sdexport.engines.files import sha256_of
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.runtime.component_engines import package_binding
from sdexport.runtime.packages.manifest import MANIFEST

VERSION = "9.9.9"
PROFILE: Profile = {
    "batch": Span(1, 2, 8),
    "height": Span(1, 16, 64),
    "width": Span(1, 16, 64),
    "sequence": Span(1, 77, 231),
}


class Status(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815


class FakeCuda:
    """CUDA's runtime functions. counts: calls of each; fails: function name -> status."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = types.SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h", cudaMemcpyDeviceToDevice="d2d"
    )
    cudaStreamCaptureMode = types.SimpleNamespace(  # noqa: N815
        cudaStreamCaptureModeThreadLocal=1
    )

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.kinds: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.fails: dict[str, Status] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.open: set[object] = set()
        self.compute_capability = (8, 9)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(value):
            return value

        def counted(*arguments: Any) -> Any:
            self.counts[name] += 1
            if name in self.fails:
                if name == "cudaStreamEndCapture":
                    self.capturing = None
                return (self.fails[name], None)
            return value(*arguments)

        counted.__name__ = name
        return counted

    def cudaGetErrorString(self, status: Status) -> Any:  # noqa: N802
        return Status.cudaSuccess, f"words for {status.name}".encode()

    def cudaGetLastError(self) -> Any:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return Status.cudaSuccess, 1

    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return Status.cudaSuccess, 12040

    def cudaRuntimeGetVersion(self) -> Any:  # noqa: N802
        return Status.cudaSuccess, 13000

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        major, minor = self.compute_capability
        return Status.cudaSuccess, types.SimpleNamespace(
            name=b"Fake GPU", major=major, minor=minor, totalGlobalMem=2**30
        )

    def cudaSetDevice(self, device: int) -> Any:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        handle = self.counts["cudaStreamCreateWithFlags"]
        self.open.add(handle)
        return Status.cudaSuccess, handle

    def cudaStreamDestroy(self, stream: int) -> Any:  # noqa: N802
        self.open.remove(stream)
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> Any:  # noqa: N802
        assert self.capturing is None
        return (Status.cudaSuccess,)

    def _allocate(self, size: int, kind: str) -> Any:
        buffer = (ctypes.c_ubyte * size)(*([0xA5] * min(size, 16)))
        address = ctypes.addressof(buffer)
        self.memory[address], self.kinds[address] = buffer, kind
        return Status.cudaSuccess, address

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        return self._allocate(size, "device")

    def cudaMallocHost(self, size: int) -> Any:  # noqa: N802
        return self._allocate(size, "host")

    def _free(self, address: int, kind: str) -> Any:
        assert self.kinds.pop(address) == kind
        del self.memory[address]
        return (Status.cudaSuccess,)

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        return self._free(address, "device")

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        return self._free(address, "host")

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: str, stream: int
    ) -> Any:
        wanted = {"h2d": ("device", "host"), "d2h": ("host", "device"), "d2d": ("device",) * 2}
        assert (self.kinds[target], self.kinds[source]) == wanted[kind]
        assert size <= min(len(self.memory[target]), len(self.memory[source]))
        self.bytes[kind] += size
        ctypes.memmove(target, source, size)
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:  # noqa: N802
        self.capturing = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        graph, self.capturing = self.capturing, None
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        self.open.add("graph")
        return Status.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> Any:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> Any:  # noqa: N802
        self.open.discard("graph")
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> Any:  # noqa: N802
        for work in graph:
            work()
        return (Status.cudaSuccess,)


class Context:
    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu, self.shapes, self.addresses = gpu, {}, {}  # type: ignore[var-annotated]
        self.profile = 0
        self.scratch = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 1000 * int(np.prod(self.shapes["sample"]))

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = address, size

    def infer_shapes(self) -> list[str]:
        return [n for n in ("sample", "timestep", "encoder_hidden_states") if n not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["sample" if name == "out_sample" else name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.gpu.fails.get("execute"):
            return False
        scratch, addresses = self.scratch, dict(self.addresses)

        def work() -> None:
            assert len(self.gpu.memory[scratch[0]]) >= scratch[1]
            values = {n: self._array(n, addresses[n]) for n in addresses}
            text = values["encoder_hidden_states"].mean(axis=(1, 2))[:, None, None, None]
            scale = np.float32(1) + values["timestep"] / np.float32(1000)
            values["out_sample"][:] = values["sample"] * scale + text

        if self.gpu.capturing is not None:
            self.gpu.capturing.append(work)
        else:
            work()
        return True

    def _array(self, name: str, address: int) -> np.ndarray:
        shape = self.get_tensor_shape(name)
        raw = self.gpu.memory[address]
        return np.frombuffer(raw, np.float32, int(np.prod(shape))).reshape(shape)


def fake_library(gpu: FakeCuda, log: list[Any]) -> types.ModuleType:
    """A module with the parts of tensorrt and tensorrt_rtx that a session uses."""
    module: Any = types.ModuleType("fake_tensorrt")
    names = ["sample", "timestep", "encoder_hidden_states", "out_sample"]
    cache = types.SimpleNamespace(
        deserialize=lambda data: (
            log.append(("deserialize", bytes(data))) or bytes(data) == b"kernels"
        ),
        serialize=lambda: b"kernels",
    )

    class ILogger:
        Severity = types.SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    class Engine:
        num_io_tensors = len(names)
        refittable = True

        def get_tensor_name(self, index: int) -> str:
            return names[index]

        def get_tensor_dtype(self, name: str) -> str:
            return "float32"

        def create_runtime_config(self) -> Any:
            return types.SimpleNamespace(
                set_execution_context_allocation_strategy=lambda s: log.append(("strategy", s)),
                create_runtime_cache=lambda: cache,
                set_runtime_cache=lambda c: log.append(("cache", c)),
            )

        def create_execution_context(self, how: Any) -> Context:
            log.append(("context", how))
            return Context(gpu)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: Any) -> Engine | None:
            if bytes(data[:4]) == b"plan":
                return Engine()
            self.logger.log(ILogger.Severity.ERROR, "magic tag\nis wrong")
            return None

    class Refitter:
        def __init__(self, *arguments: Any) -> None:
            self.logger = arguments[-1]

        def refit_from_file(self, path: str) -> bool:
            log.append(("refit", Path(path).name))
            return True

        def refit_cuda_engine(self) -> bool:
            return True

    module.__version__ = VERSION
    module.ILogger, module.Runtime = ILogger, Runtime
    module.Refitter = module.OnnxParserRefitter = Refitter
    module.ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="user")
    module.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    module.nptype = lambda dtype: np.float32
    found: types.ModuleType = module
    return found


def install(monkeypatch: pytest.MonkeyPatch, log: list[Any] | None = None) -> FakeCuda:
    """Replace the modules that sessions import by the fakes."""
    gpu = FakeCuda()
    monkeypatch.setattr(cuda_device, "runtime", lambda: gpu)
    library = fake_library(gpu, [] if log is None else log)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, library)
    return gpu


def write_plan(model: Path, plan: Path, backend: str, **changes: Any) -> Path:
    """Write a plan for the fake library, and its sidecar file."""
    plan.write_bytes(b"plan")
    inputs, outputs = graph_specs(model)
    values: dict[str, Any] = {
        "component": plan.stem,
        "backend": backend,
        "library_version": VERSION,
        "onnx_sha256": sha256_of(model),
        "graph_sha256": graph_digest(model),
        "package_sha256": _binding(model.parents[1]),
        "target": {"compute_capabilities": "portable"},
        "profiles": (PROFILE,),
        "options": {},
        "inputs": inputs,
        "outputs": outputs,
        "files": {plan.name: StoredFile.of(plan)},
    }
    sidecar_path(plan).write_text(Sidecar(**values | changes).to_json())
    return plan


def _binding(folder: Path) -> str:
    """What an engine for a package in this folder is bound to; "" if there is no package."""
    is_package = (folder / MANIFEST).is_file()
    return package_binding(Package.load(folder, verify=False)) if is_package else ""
