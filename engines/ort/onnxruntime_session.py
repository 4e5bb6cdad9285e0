"""ONNX Runtime as a Session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.cuda_device import check_device
from sdexport.engines.errors import EngineError, InvalidArgumentError
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.onnx_file.group_norm_nodes import with_instance_norms
from sdexport.engines.ort.cuda_libraries import missing_libraries
from sdexport.engines.ort.external_data import give_external_data
from sdexport.engines.ort.mapped_initializers import MappedInitializers
from sdexport.engines.ort.runtime_library import (
    CPU,
    CUDA,
    DATA_FOLDER,
    Provider,
    cancellable,
    check_available,
    check_started,
    compute,
    failing,
    load,
    loading,
    ort,
    session_options,
    store_optimized,
    tensor_specs,
)
from sdexport.engines.ort.widened_weights import kept_halves, widened_model, widens
from sdexport.engines.session import (
    BoundSession,
    Feeds,
    GraphSource,
    Session,
    SessionBase,
    TensorSpec,
)

NEARLY_ALL = 0.95
"""Share of the weights whose memory must be freed so that the session need not be closed."""
MANY_INPUTS = 32
"""Bound inputs from which on they become ONNX Runtime's own values once. The 1,400 factors of LoRAs
of SDXL cost 12 ms a call as arrays, and 0.8 ms so."""


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
      keep: where to write the graph as it runs, see store_optimized; large weights are copied then,
        also with `seldom`.
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
        keep: Path | None = None,
    ) -> None:
        path = Path(path)
        name = path.parent.name or path.stem
        providers = (providers,) if isinstance(providers, str) else providers
        wanted = [p if isinstance(p, str) else p[0] for p in providers]
        check_available(name, wanted)
        if CUDA in wanted and (missing := missing_libraries()):
            raise EngineError(f"{name}: ONNX Runtime cannot start {CUDA}: {missing}")
        options = session_options(threads, optimization, prepacking)
        if keep is not None:
            store_optimized(options, keep)
        self._weights: MappedInitializers | None = None
        self._frees_all = True
        with files.unchanged():
            session = None
            if tuple(wanted) == CPU:
                rewrites = optimization != "none"
                session, halves = _load_widened(
                    name, path, options, mapped=keep is None, rewrites=rewrites
                )
                if seldom and halves is not None:
                    stored = sum(each.size for each in survey(path).external)
                    self._weights, self._frees_all = halves, halves.size >= NEARLY_ALL * stored
            if session is None:
                self._weights = MappedInitializers.of(path) if seldom and keep is None else None
                if self._weights is not None:
                    self._weights.give(options)
                if tuple(wanted) == CPU and optimization != "none":
                    session = _load_rewritten(name, path, options)
                if session is None:
                    session = load(name, path, options, providers)
                session.mapped_weights = self._weights  # see _load_widened
        check_started(name, wanted, session.get_providers())
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
        return self._frees_all

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
        session, uploaded = self._owner._opened(), self._uploaded  # another thread may close both
        checked = self._checked_feeds(feeds)
        with failing(f"{self.name}: ONNX Runtime failed"):
            binding = session.io_binding()
            for name, value in uploaded.items():
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


def maps_weights(path: Path) -> bool:
    """Whether a session with `seldom` uses the weights of an ONNX file where they are mapped.

    Raises: EngineError: the file cannot be read.
    """
    with loading(path.parent.name or path.stem, path.name):
        return widens(path) is None and MappedInitializers.suits(path)


def _load_widened(
    name: str, path: Path, options: Any, *, mapped: bool, rewrites: bool
) -> tuple[Any, MappedInitializers | None]:
    """ONNX Runtime's own session of a graph with large float16 weights; None for other graphs.

    Args:
      mapped: whether weights that stay float16 are used where their file is mapped.
      rewrites: see _load_rewritten.
    Returns: also these weights. The session borrows them, and a call may still run when another
      thread closes it: so it keeps them itself.
    Raises: EngineError: it cannot be loaded.
    """
    with loading(name, path.name):
        found = widens(path)
        if found is None:
            return None, None
        kept = kept_halves(found)
        halves = MappedInitializers.halves(path, kept) if mapped and kept else None
        with widened_model(path, found, kept, mapped=halves is not None) as model:
            if model is None:
                return None, None
            options.add_session_config_entry(DATA_FOLDER, str(model[1]))
            if halves is not None:
                halves.give(options, prepacking=True)
            content = (with_instance_norms(model[0], name) if rewrites else None) or model[0]
            session = load(name, path, options, CPU, model=content)
            session.mapped_weights = halves
            return session, halves


def _load_rewritten(name: str, path: Path, options: Any) -> Any:
    """ONNX Runtime's own session of a graph with group normalization; None for other graphs.

    None also for files that are no ONNX model: ONNX Runtime says so, or has a format of its own.
    Raises: EngineError: it cannot be loaded.
    """
    model = None
    with suppress(EngineError, OSError):
        model = with_instance_norms(path, name)
    if model is None:
        return None
    with ExitStack() as mapped:
        give_external_data(name, path, options, mapped)
        return load(name, path, options, CPU, model=model)


def _device_id(provider: Provider) -> int:
    """The number of the GPU that a provider runs on."""
    options = {} if isinstance(provider, str) else provider[1]
    try:
        return int(options.get("device_id", 0))
    except ValueError:
        raise InvalidArgumentError(
            f"device_id must be the number of a GPU, got {options['device_id']!r:.40}"
        ) from None
