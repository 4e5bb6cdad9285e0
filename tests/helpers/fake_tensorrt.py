"""TensorRT that computes in host memory, as strict as its bindings.

The "engine" knows one graph, that of a UNet's names and shapes:
out_sample = sample * (1 + t / 1000)
+ the mean of encoder_hidden_states.

- Every method, constructor and property exists in the installed `tensorrt_rtx` and takes these
  arguments: each call is compared with the signature that the bindings' docstring has. Where the
  module is not installed, nothing is compared.
- A failed constructor raises TypeError, a failed method what `fails` says; the reason goes to the
  logger. Objects have no attributes of their own.
- Destructors log. An object that is destroyed before what was made with it is a fault, see World.
- The automatic budget of weight streaming is a signed number of 32 bits.
"""

from __future__ import annotations

import enum
import functools
import importlib
import sys
import types
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package
from sdexport.engines import cuda_device
from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.cache.sidecar import Sidecar, StoredFile, model_digest, sidecar_path
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.trt import scratch_memory
from sdexport.runtime.component_engines import package_binding
from sdexport.runtime.packages.manifest import MANIFEST
from tests.helpers.binding_signatures import METHOD, Surface, mismatch, surface
from tests.helpers.fake_cuda import FakeCuda, Status

__all__ = ["PROFILE", "VERSION", "FakeCuda", "Status", "install", "write_plan"]
VERSION = "99.9.9"
PROFILE: Profile = {
    "batch": Span(1, 2, 8),
    "height": Span(1, 16, 64),
    "width": Span(1, 16, 64),
    "sequence": Span(1, 77, 231),
}
NAMES = ["sample", "timestep", "encoder_hidden_states", "out_sample"]
RTX_ONLY = (
    *("ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"),
    *("IRuntimeCache",),
)
"""What TensorRT's own module lacks."""
DESTROYED = "destroyed before"


@functools.cache
def real_surface() -> Surface | None:
    """What the installed tensorrt_rtx offers; None if it is not installed."""
    try:
        return surface(importlib.import_module("tensorrt_rtx"))
    except ImportError:
        return None


_REAL = real_surface()  # before a test replaces the module


class Bound:
    """Base of the stand-ins for the library's classes: checks calls, and plays their failures."""

    _keeps: Bound | None = None
    """An object that is destroyed after this one."""

    def __init_subclass__(cls) -> None:
        if cls.__module__ != __name__:
            return  # a subclass in Python, such as a logger
        for name, function in list(vars(cls).items()):
            if callable(function) and (name == "__init__" or not name.startswith("_")):
                setattr(cls, name, _checked(cls.__name__, name, function))

    def __setattr__(self, name: str, value: object) -> None:
        own = _class_of(self)
        if not name.startswith("_") and own in FAKES:
            member = None if _REAL is None else _REAL[own].get(name)
            if _REAL is not None and (member is None or not member.writable):
                raise AttributeError(f"{own} has no property {name} that can be set")
            self._world.play(f"{own}.{name}", (value,))
        object.__setattr__(self, name, value)

    @property
    def _world(self) -> World:
        return current_world()


def _class_of(thing: Bound) -> str:
    return type(thing).__name__


def _checked(owner: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(self: Any, *arguments: Any) -> Any:
        called = owner if name == "__init__" else f"{owner}.{name}"
        if _REAL is not None:
            member = _REAL[owner].get(name)
            if member is None or member.kind != METHOD:
                raise AttributeError(f"tensorrt_rtx has no {owner}.{name}")
            if problem := mismatch(member.signatures, arguments):
                raise TypeError(f"{name}(): incompatible function arguments: {problem}")
        played = current_world().play(called, arguments)
        return function(self, *arguments) if played is None else played.result

    return checked


class Failure:
    """How a call fails: it raises `error`, or returns `result`; `logged` goes to the logger."""

    def __init__(
        self, result: object = None, error: Exception | None = None, logged: str = ""
    ) -> None:
        self.result, self.error, self.logged = result, error, logged


class World:
    """The state of one stand-in library.

    fails: "Class.method", "Class" or "Class.property" -> how it fails.
    calls: how often each was called, with its number of arguments.
    faults: of the rules of destruction.
    """

    def __init__(self, gpu: FakeCuda, log: list[Any]) -> None:
        self.gpu, self.log = gpu, log
        self.fails: dict[str, Failure] = {}
        self.calls: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []
        self.logger: Any = None
        self.weights, self.scratch = 0, 2**30
        self.serialized: object = b"kernels"

    def play(self, called: str, arguments: tuple[object, ...]) -> Failure | None:
        self.calls[called, len(arguments)] += 1
        failure = self.fails.get(called)
        if failure is None:
            return None
        if failure.logged:
            self.logger.log(self.logger.Severity.ERROR, failure.logged)
        if failure.error is not None:
            raise failure.error
        return failure

    def made(self, thing: Bound, keeps: Bound | None = None, *needed: Bound) -> None:
        """Register an object.

        Args:
          keeps: what it holds, so that this is destroyed after it (keep_alive of pybind11).
          needed: what the caller must hold as long as it.
        """
        thing._keeps = keeps
        names = [_class_of(other) for other in needed]
        references, name, logger = list(map(weakref.ref, needed)), _class_of(thing), self.logger

        def destroyed() -> None:
            for reference, other in zip(references, names, strict=True):
                if reference() is None:
                    self.faults.append(f"{other} was {DESTROYED} its {name}")
            logger.log(logger.Severity.WARNING, f"destroying {name}")

        weakref.finalize(thing, destroyed).atexit = False


_world: list[World] = []


def current_world() -> World:
    return _world[-1]


class ILogger(Bound):
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        current_world().logger = self


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class ComputeCapability(enum.Enum):
    NONE, CURRENT = range(2)
    SM75, SM80, SM86, SM89, SM120, SM121 = 75, 80, 86, 89, 120, 121


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)


def nptype(trt_type: DataType) -> type:
    found = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT64: np.int64}
    if trt_type not in found:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return found[trt_type]


class Dims:
    """A shape, which is no tuple."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> int:
        return self._sizes[index]


class IExecutionContext(Bound):
    _profile, _memory = 0, (0, 0)

    def __new__(cls) -> IExecutionContext:  # the bindings have no constructor
        context = super().__new__(cls)
        context._shapes, context._addresses = {}, {}
        return context

    _shapes: dict[str, tuple[int, ...]]
    _addresses: dict[str, int]

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 1000 * int(np.prod(self._shapes["sample"]))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 or size >= 0
        self._memory = memory, size

    def infer_shapes(self) -> list[str]:
        return [name for name in NAMES[:3] if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._shapes["sample" if name == "out_sample" else name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in NAMES
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu, (address, size) = self._world.gpu, self._memory
        assert ("stream", stream_handle) in gpu.open
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        shapes["out_sample"] = shapes["sample"]

        def work() -> None:
            assert len(gpu.memory[address]) >= size
            values = {n: gpu.array(addresses[n], shapes[n]) for n in addresses}
            text = values["encoder_hidden_states"].mean(axis=(1, 2))[:, None, None, None]
            scale = np.float32(1) + values["timestep"] / np.float32(1000)
            values["out_sample"][:] = values["sample"] * scale + text

        if gpu.capturing is not None:
            gpu.capturing.append(work)
        else:
            work()
        return True


class IRuntimeCache(Bound):
    def deserialize(self, blob: Any) -> bool:
        self._world.log.append(("deserialize", bytes(blob)))
        return bytes(blob) == b"kernels"

    def serialize(self) -> Any:
        return self._world.serialized


class IRuntimeConfig(Bound):
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._world.log.append(("strategy", strategy))

    def create_runtime_cache(self) -> IRuntimeCache:
        cache = IRuntimeCache()
        self._world.made(cache)
        return cache

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = weakref.ref(cache)
        self._world.log.append(("cache", cache))
        return True


class ICudaEngine(Bound):
    num_io_tensors = len(NAMES)
    refittable = True
    weight_streaming_budget_v2 = 0
    weight_streaming_scratch_memory_size = 0

    @property
    def streamable_weights_size(self) -> int:
        return self._world.weights

    @property
    def device_memory_size_v2(self) -> int:
        return self._world.scratch

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._world.scratch

    def get_weight_streaming_automatic_budget(self) -> int:
        return int(np.int64(self._world.weights).astype(np.int32))

    def get_tensor_name(self, index: int) -> str:
        return NAMES[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def create_runtime_config(self) -> IRuntimeConfig:
        config = IRuntimeConfig()
        self._world.made(config, self)
        return config

    def create_execution_context(self, how: Any) -> IExecutionContext:
        context = IExecutionContext()
        self._world.log.append(("context", how))
        configured = (how,) if isinstance(how, IRuntimeConfig) else ()
        cache = getattr(how, "_cache", lambda: None)()
        self._world.made(context, self, *configured, *([] if cache is None else [cache]))
        return context


class Runtime(Bound):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._world.made(self)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        if bytes(serialized_engine[:4]) == b"plan":
            engine = ICudaEngine()
            self._world.made(engine, self)
            return engine
        self._logger.log(ILogger.Severity.ERROR, "magic tag\nis wrong")
        return None


class Refitter(Bound):
    _parser: OnnxParserRefitter | None = None

    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self._world.made(self, engine)

    def refit_cuda_engine(self) -> bool:
        return True


class OnnxParserRefitter(Bound):
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._world.made(self)
        refitter._parser = self  # as in the bindings: it is not the parser that holds the refitter

    def refit_from_file(self, model: str) -> bool:
        self._world.log.append(("refit", Path(model).name))
        return True


PARTS = (
    *(ILogger, Runtime, ICudaEngine, IExecutionContext, IRuntimeConfig, IRuntimeCache),
    *(Refitter, OnnxParserRefitter, DataType, ComputeCapability, CudaGraphStrategy),
    *(ExecutionContextAllocationStrategy, DynamicShapesKernelSpecializationStrategy, nptype),
)
FAKES = {part.__name__ for part in PARTS}


def fake_library(*, rtx: bool) -> types.ModuleType:
    """The parts of tensorrt_rtx, or of tensorrt, that a session uses."""
    module: Any = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__version__ = VERSION
    for part in PARTS:
        if rtx or part.__name__ not in RTX_ONLY:
            setattr(module, part.__name__, part)
    found: types.ModuleType = module
    return found


def install(monkeypatch: pytest.MonkeyPatch, log: list[Any] | None = None) -> FakeCuda:
    """Replace the modules that sessions import by the fakes."""
    gpu = FakeCuda()
    monkeypatch.setattr(cuda_device, "runtime", lambda: gpu)
    monkeypatch.setattr(scratch_memory, "_shared", {})  # its addresses are of another fake GPU
    monkeypatch.setattr(sys.modules[__name__], "_world", [World(gpu, [] if log is None else log)])
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, fake_library(rtx=name == "tensorrt_rtx"))
    return gpu


def write_plan(model: Path, plan: Path, backend: str, **changes: Any) -> Path:
    """Write a plan for the fake library, and its sidecar file."""
    plan.write_bytes(b"plan")
    inputs, outputs = graph_specs(model)
    values: dict[str, Any] = {
        "component": plan.stem,
        "backend": backend,
        "library_version": VERSION,
        "onnx_sha256": model_digest(model),
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
