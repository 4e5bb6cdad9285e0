"""ONNX Runtime as a Session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.cuda_device import absent, check_device
from sdexport.engines.errors import (
    EngineError,
    InvalidArgumentError,
    MissingDependencyError,
    engine_error,
)
from sdexport.engines.exit_actions import CANCEL
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.engines.messages import import_failure, one_line
from sdexport.engines.ort.cuda_libraries import INSTALL, missing_libraries
from sdexport.engines.ort.mapped_initializers import MappedInitializers
from sdexport.engines.ort.widened_weights import widened_model, widens
from sdexport.engines.session import (
    ANY_SIZE,
    BoundSession,
    Feeds,
    GraphSource,
    Session,
    SessionBase,
    TensorSpec,
    check_count,
)
from sdexport.engines.telemetry import import_onnxruntime

try:
    ort = import_onnxruntime()
except ImportError as error:
    raise MissingDependencyError(
        "ONNX Runtime is not installed; run: pip install 'sdexport[cpu]' (or 'sdexport[gpu]')"
        f"{import_failure(error)}"
    ) from error

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


OPTIMIZATIONS = ("none", "basic", "extended", "all")
_LEVELS = dict(
    zip(
        OPTIMIZATIONS,
        ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"),
        strict=True,
    )
)
CUDA = "CUDAExecutionProvider"

CPU = ("CPUExecutionProvider",)
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""Option of a session: where the external data of a model is that is given as bytes."""
MANY_INPUTS = 32
"""Bound inputs from which on they become ONNX Runtime's own values once. The 1,400 factors of LoRAs
of SDXL cost 12 ms a call as arrays, and 0.8 ms so."""

Provider = str | tuple[str, Mapping[str, Any]]


class OnnxRuntimeBase(SessionBase):
    """Shared code of ONNX Runtime's sessions."""

    device = "cpu"
    device_id = 0

    def __init__(
        self, session: Any, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        super().__init__(name, inputs, outputs)
        self._session = session
        self._output_names = [spec.name for spec in self.outputs]

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return compute(self.name, self._opened(), self._output_names, feeds)

    def _opened(self) -> Any:
        session = self._session
        if session is None:  # another thread has closed it since `run` checked
            self._check_open()
        return session

    def _release(self) -> None:
        self._session = None


class OnnxRuntimeSession(OnnxRuntimeBase):
    """An ONNX graph in ONNX Runtime.

    ONNX Runtime maps external weights into memory. Unless `prepacking` is off, it keeps a second
    copy of those of matrix products and convolutions in another layout.

    Args:
      path: the .onnx file; its external data is in the same folder.
      providers: an execution provider's name, or several in order of preference, each a name or
        (name, options).
      threads: threads inside one operator; None leaves it to ONNX Runtime (every core).
      optimization: how far the graph is rewritten, one of OPTIMIZATIONS.
      prepacking: False uses weights where they are mapped: no copy, slower products.
      files: those that are opened; their identity is compared before and after that.
      seldom: the graph runs seldom: do not copy large weights, so that `trim` frees them.
      unused: why a graph that was prepared from this one is not run; see GraphSource.
    Raises: InvalidArgumentError: an option out of range. EngineError: the file cannot be loaded, or
      a provider is not in this installation or does not start. PackageError: the files changed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: str | Sequence[Provider] = CPU,
        threads: int | None = None,
        optimization: str = "all",
        prepacking: bool = True,
        files: CheckedFiles = UNCHECKED,
        seldom: bool = False,
        unused: str = "",
    ) -> None:
        path = Path(path)
        name = path.parent.name or path.stem
        providers = (providers,) if isinstance(providers, str) else providers
        wanted = [p if isinstance(p, str) else p[0] for p in providers]
        _check_available(name, wanted)
        if CUDA in wanted and (missing := missing_libraries()):
            raise EngineError(f"{name}: ONNX Runtime cannot start {CUDA}: {missing}")
        options = session_options(threads, optimization, prepacking)
        self._weights: MappedInitializers | None = None
        with files.unchanged():
            session = _load_widened(name, path, options) if tuple(wanted) == CPU else None
            if session is None:
                self._weights = MappedInitializers.of(path) if seldom else None
                if self._weights is not None:
                    self._weights.give(options)
                session = load(name, path, options, providers)
        _check_started(name, wanted, session.get_providers())
        super().__init__(
            session, name, tensor_specs(session.get_inputs()), tensor_specs(session.get_outputs())
        )
        self._source = GraphSource(path, unused=unused)
        if wanted and wanted[0] == CUDA:
            self.device, self.device_id = "cuda", _device_id(providers[0])

    @property
    def mapped(self) -> int | None:
        return self._weights.size if self._weights is not None else None

    def trim(self, room: int | None = None) -> bool:
        weights = self._weights
        if weights is None:
            return False
        weights.free()
        return True

    def _release(self) -> None:
        super()._release()
        self._weights = None

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        in_place = self.device == "cpu" and len(constants) < MANY_INPUTS
        bound = BoundSession if in_place else OnDevice
        return bound(self, constants, shared)


def open_cuda(
    path: str | Path,
    *,
    device: int = 0,
    threads: int | None = None,
    optimization: str = "all",
    provider_options: Mapping[str, Any] | None = None,
    files: CheckedFiles = UNCHECKED,
) -> OnnxRuntimeSession:
    """Open an ONNX graph in ONNX Runtime on an NVIDIA GPU; nodes without a kernel run on the CPU.

    Args:
      device: number of the GPU.
      provider_options: further options of the CUDA provider, by ONNX Runtime's names.
      files: see OnnxRuntimeSession.
    Raises: see OnnxRuntimeSession; InvalidArgumentError also for a device_id that is not `device`.
    """
    check_device(device)
    options = {"device_id": str(device), **(provider_options or {})}
    if str(options["device_id"]) != str(device):
        raise InvalidArgumentError(
            f"device is {device}, and device_id in provider_options {options['device_id']!r:.20}; "
            "pass device alone"
        )
    return OnnxRuntimeSession(
        path,
        providers=[(CUDA, options), *CPU],
        threads=threads,
        optimization=optimization,
        files=files,
    )


class OnDevice(BoundSession):
    """Bound inputs as ONNX Runtime's own values, on the device; a call uploads only the others."""

    def __init__(self, parent: OnnxRuntimeBase, constants: Feeds, shared: Sequence[str]) -> None:
        super().__init__(parent, constants, shared)
        self._owner = parent
        where = f"{parent.device} {parent.device_id}"
        with failing(f"{self.name}: ONNX Runtime cannot copy the bound inputs to {where}"):
            self._uploaded: dict[str, Any] = {
                name: ort.OrtValue.ortvalue_from_numpy(
                    np.ascontiguousarray(value), parent.device, parent.device_id
                )
                for name, value in self._constants.items()
            }

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        session = self._owner._opened()
        checked = self._checked_feeds(feeds)
        with failing(f"{self.name}: ONNX Runtime failed"):
            binding = session.io_binding()
            for name, value in self._uploaded.items():
                binding.bind_ortvalue_input(name, value)
            for name in feeds:
                binding.bind_cpu_input(name, np.ascontiguousarray(checked[name]))
            for spec in self.outputs:
                binding.bind_output(spec.name, "cpu")
            with cancellable() as options:
                session.run_with_iobinding(binding, options)
            values = binding.copy_outputs_to_cpu()
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def _release(self) -> None:
        super()._release()
        self._uploaded = {}


def session_options(threads: int | None, optimization: str, prepacking: bool) -> Any:
    """ONNX Runtime's options for a session; see OnnxRuntimeSession for the arguments.

    Raises: InvalidArgumentError: an option out of range.
    """
    if optimization not in OPTIMIZATIONS:
        raise InvalidArgumentError(
            f"optimization must be one of {', '.join(OPTIMIZATIONS)}, got {optimization!r:.40}"
        )
    if threads is not None:
        check_count("threads", threads)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # none: its errors are raised, warnings are about optimisation
    # With memory patterns, the second run of a shape adds an arena for it: 1.7 times the peak
    # memory in the VAE decoder, at the same speed.
    options.enable_mem_pattern = False
    # The graph's own order. The default one converts fp16 weights to float32 long before they are
    # used: 7.5 GB for SDXL's UNet instead of 0.5.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimization])
    if threads is not None:
        options.intra_op_num_threads = threads
    if not prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def load(name: str, path: Path, options: Any, providers: Sequence[Provider]) -> Any:
    """ONNX Runtime's own session of a file; `name` is the component's, for messages.

    Raises: EngineError: it cannot be loaded.
    """
    with loading(name, path.name):
        # without `enable_fallback`, a provider that fails raises its error; with it, ONNX Runtime
        # prints to stdout and goes on with the CPU
        return ort.InferenceSession(
            str(path), options, providers=list(providers), enable_fallback=0
        )


def _load_widened(name: str, path: Path, options: Any) -> Any:
    """ONNX Runtime's own session of a graph with large float16 weights; None for other graphs.

    Raises: EngineError: it cannot be loaded.
    """
    with loading(name, path.name):
        found = widens(path)
        if found is None:
            return None
        with widened_model(path, found) as model:
            if model is None:
                return None
            options.add_session_config_entry(DATA_FOLDER, str(model[1]))
            return ort.InferenceSession(model[0], options, providers=list(CPU), enable_fallback=0)


def loading(name: str, what: str) -> AbstractContextManager[None]:
    """Turn ONNX Runtime's errors in a block that loads a graph into EngineError.

    Args:
      name: of the component. what: is loaded, for the message.
    """
    return failing(f"{name}: ONNX Runtime cannot load {what}")


@contextmanager
def failing(failure: str) -> Iterator[None]:
    """Turn ONNX Runtime's errors in a block into EngineError; `failure` begins the message."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # its exception classes have no other base
        raise engine_error(f"{failure}: {one_line(error)}") from error


def compute(name: str, session: Any, outputs: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
    """Run ONNX Runtime's own session; arrays by the name of the output.

    Raises: EngineError: it failed.
    """
    with failing(f"{name}: ONNX Runtime failed"), cancellable() as options:
        values = session.run(outputs, dict(feeds), options)
    return dict(zip(outputs, values, strict=True))


@contextmanager
def cancellable() -> Iterator[Any]:
    """Options of a run that fails after its current node when a command is interrupted."""
    options = ort.RunOptions()

    def cancel() -> None:
        options.terminate = True

    with CANCEL.during(cancel):
        yield options


def _check_available(name: str, wanted: Sequence[str]) -> None:
    available = ort.get_available_providers()
    for provider in wanted:
        if provider not in available:
            hint = f"; {INSTALL}" if provider == CUDA else ""
            if provider.casefold() == "nvtensorrtrtxexecutionprovider":
                hint = (
                    ". It is a plugin of ONNX Runtime, which sdexport does not load: use "
                    "--backend tensorrt-rtx"
                )
            raise EngineError(
                f"{name}: ONNX Runtime has no {provider} here; it has {', '.join(available)}{hint}"
            )


def _check_started(name: str, wanted: Sequence[str], started: Sequence[str]) -> None:
    """Raise an error for a provider that did not start: ONNX Runtime goes on without it."""
    for provider in wanted:
        if provider not in started:
            reason = absent() if provider == CUDA else ""
            reason = reason or "no such device, or a driver that is too old"
            raise EngineError(
                f"{name}: ONNX Runtime could not start {provider}: {reason}. The graph would run "
                f"on {', '.join(started)}"
            )


def _device_id(provider: Provider) -> int:
    """The number of the GPU that a provider runs on."""
    options = {} if isinstance(provider, str) else provider[1]
    try:
        return int(options.get("device_id", 0))
    except ValueError:
        raise InvalidArgumentError(
            f"device_id must be the number of a GPU, got {options['device_id']!r:.40}"
        ) from None


def tensor_specs(values: Sequence[Any]) -> list[TensorSpec]:
    """Specs of ONNX Runtime's own descriptions of inputs or outputs."""
    return [
        TensorSpec(
            v.name,
            _DTYPES.get(v.type, v.type),
            tuple(d if isinstance(d, (int, str)) else ANY_SIZE for d in v.shape),
        )
        for v in values
    ]
