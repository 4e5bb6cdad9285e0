"""ONNX Runtime as a Session."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from engines import onnxruntime_prepared as prepared
from engines.session import (
    ANY_SIZE,
    BoundSession,
    EngineError,
    Feeds,
    Session,
    SessionBase,
    TensorSpec,
    check_count,
)
from engines.sidecar import Sidecar

try:
    import onnxruntime as ort
except ImportError as error:
    raise ImportError(
        "ONNX Runtime is not installed; run: pip install 'sdexport[cpu]' (or 'sdexport[gpu]')"
    ) from error

_log = logging.getLogger(__name__)

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
_DEVICES = {"CUDAExecutionProvider": "cuda", "NvTensorRtRtxExecutionProvider": "cuda"}

_CPU = ("CPUExecutionProvider",)

_ARENA = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR

Provider = str | tuple[str, Mapping[str, Any]]


class _OnnxRuntime(SessionBase):
    """What ONNX Runtime's sessions do alike."""

    device = "cpu"

    def __init__(
        self, session: Any, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        super().__init__(name, inputs, outputs)
        self._session = session
        self._output_names = [spec.name for spec in self.outputs]

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        session = self._opened()
        try:
            values = session.run(self._output_names, dict(feeds))
        except Exception as error:
            raise EngineError(f"{self.name}: ONNX Runtime failed: {_one_line(error)}") from error
        return dict(zip(self._output_names, values, strict=True))

    def _opened(self) -> Any:
        session = self._session
        if session is None:  # closed by another thread since `run` looked
            self._check_open()
        return session

    def _release(self) -> None:
        self._session = None


class OnnxRuntimeSession(_OnnxRuntime):
    """An ONNX graph in ONNX Runtime.

    ONNX Runtime maps weights that lie in a file beside the graph; it keeps a second, rearranged
    copy of those of matrix products and convolutions unless `prepacking` is off.

    Args:
      path: the .onnx file; external data is looked up beside it.
      providers: an execution provider's name, or several in order of preference, each a name or
        (name, options).
      threads: threads inside one operator; None leaves it to ONNX Runtime (every core).
      optimization: how far the graph is rewritten, one of OPTIMIZATIONS.
      prepacking: False leaves weights where they are mapped: no copy, slower products.
    Raises: ValueError: an option out of range. EngineError: the file cannot be loaded, or a
      provider is not in this installation or does not start.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: str | Sequence[Provider] = _CPU,
        threads: int | None = None,
        optimization: str = "all",
        prepacking: bool = True,
    ) -> None:
        path = Path(path)
        name = path.parent.name or path.stem
        providers = (providers,) if isinstance(providers, str) else providers
        wanted = [p if isinstance(p, str) else p[0] for p in providers]
        _check_available(name, wanted)
        options = _options(threads, optimization, prepacking)
        session = _load(name, path, options, providers)
        _check_started(name, wanted, session.get_providers())
        super().__init__(session, name, _specs(session.get_inputs()), _specs(session.get_outputs()))
        self.device = _DEVICES.get(wanted[0], "cpu") if wanted else "cpu"

    def bind(self, *, twice: Sequence[str] = (), **constants: np.ndarray) -> Session:
        made = BoundSession if self.device == "cpu" else _OnDevice
        return made(self, constants, twice)


class PreparedSession(_OnnxRuntime):
    """A graph that was prepared for this processor; see engines.onnxruntime_prepared.

    Args:
      plan: the prepared graph. sidecar: its own.
      own: opens the graph that it was made from, for sizes that the prepared one does not take.
      threads: see OnnxRuntimeSession.
    Raises: EngineError: it cannot be loaded.
    """

    def __init__(
        self,
        plan: Path,
        sidecar: Sidecar,
        own: Callable[[], OnnxRuntimeSession],
        *,
        threads: int | None,
    ) -> None:
        name = sidecar.component
        options = _options(threads, "none", True)
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        session = _load(name, plan, options, _CPU)
        super().__init__(session, name, sidecar.inputs, sidecar.outputs)
        self._plans, self._own = [plan], own
        self._taken = [value.name for value in session.get_inputs()]
        self._input = prepared.given_before(sidecar)
        if self._input is not None:
            self._plans.append(prepared.before_path(plan))
            self._before: Any = _load(name, self._plans[1], options, _CPU)
            self._products = [value.name for value in self._before.get_outputs()]
        self._held: tuple[np.ndarray, list[np.ndarray]] | None = None
        self._multiples = prepared.multiples(sidecar)
        self._other: OnnxRuntimeSession | None = None
        self._lock = threading.Lock()

    @property
    def mapped(self) -> int:
        return sum(prepared.data_path(plan).stat().st_size for plan in self._plans)

    def trim(self, room: int | None = None) -> bool:
        with self._lock:
            if self._other is not None:
                self._other.close()
                self._other = None
        return prepared.give_back(map(prepared.data_path, self._plans), room)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        for name, multiple in self._multiples.items():
            if any(size % multiple for size in feeds[name].shape[2:]):
                return self._unprepared().run(feeds)
        if self._input is not None:
            feeds = {**feeds, **self._of_input(feeds[self._input])}
        return super()._compute({name: feeds[name] for name in self._taken})

    def _of_input(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """What depends on one input alone, computed again only if that has changed."""
        held = self._held
        if held is None or not np.array_equal(held[0], value):
            self._opened()
            try:
                held = value.copy(), self._before.run(self._products, {self._input: value})
                prepared.give_back([prepared.data_path(self._plans[1])])
            except Exception as error:
                raise EngineError(
                    f"{self.name}: ONNX Runtime failed: {_one_line(error)}"
                ) from error
            self._held = held
        return dict(zip(self._products, held[1], strict=True))

    def _unprepared(self) -> OnnxRuntimeSession:
        with self._lock:
            self._check_open()
            if self._other is None:
                _log.info("%s: the prepared graph does not take this size", self.name)
                self._other = self._own()
            return self._other

    def _release(self) -> None:
        super()._release()
        self._before = self._held = None
        with self._lock:
            if self._other is not None:
                self._other.close()


def open_onnxruntime(
    path: str | Path,
    *,
    providers: str | Sequence[Provider] = _CPU,
    threads: int | None = None,
    optimization: str = "all",
    prepacking: bool = True,
    plan: str | Path | None = None,
    digest: str | None = None,
) -> OnnxRuntimeSession | PreparedSession:
    """An ONNX graph in ONNX Runtime, prepared for this processor if it is.

    What was prepared from another file, with another version or for another processor is not taken,
    with a warning; nor is it where providers, optimization or prepacking are given.

    Args:
      path, providers, threads, optimization, prepacking: see OnnxRuntimeSession.
      plan: the graph that `sdexport build` prepared; there may be none.
      digest: engines.sidecar.model_digest of `path`, for comparison with what it was made from.
    Raises: see OnnxRuntimeSession.
    """
    providers = (providers,) if isinstance(providers, str) else tuple(providers)
    own = partial(
        OnnxRuntimeSession,
        path,
        providers=providers,
        threads=threads,
        optimization=optimization,
        prepacking=prepacking,
    )
    ordinary = (providers, optimization, prepacking) == (_CPU, "all", True)
    if plan is None or not ordinary or not Path(plan).exists():
        return own()
    plan = Path(plan)
    try:
        sidecar = Sidecar.read(plan)
        found = prepared.differences(sidecar, digest=digest, version=ort.__version__)
        if not found:
            return PreparedSession(plan, sidecar, own, threads=threads)
    except (EngineError, FileNotFoundError) as error:
        found = [str(error)]
    _log.warning(
        "%s: its prepared graph is not used: %s; prepare it again: sdexport build PACKAGE "
        "--backend onnxruntime --component %s --rebuild-stale",
        plan.stem,
        "; ".join(found),
        plan.stem,
    )
    return own()


def open_cuda(
    path: str | Path,
    *,
    device: int = 0,
    threads: int | None = None,
    optimization: str = "all",
    provider_options: Mapping[str, Any] | None = None,
) -> OnnxRuntimeSession:
    """An ONNX graph in ONNX Runtime on an NVIDIA GPU; what CUDA cannot do runs on the CPU.

    Args:
      device: number of the GPU.
      provider_options: more options of the CUDA provider, by ONNX Runtime's names.
    Raises: see OnnxRuntimeSession.
    """
    options = {"device_id": str(device), **(provider_options or {})}
    return OnnxRuntimeSession(
        path,
        providers=[("CUDAExecutionProvider", options), "CPUExecutionProvider"],
        threads=threads,
        optimization=optimization,
    )


class _OnDevice(BoundSession):
    """Constants stay in device memory; each call binds them and uploads the other inputs."""

    def __init__(self, parent: OnnxRuntimeSession, constants: Feeds, twice: Sequence[str]) -> None:
        super().__init__(parent, constants, twice)
        self._owner = parent
        self._uploaded: dict[str, Any] = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), parent.device, 0)
            for name, value in self._held.items()
        }

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        session = self._owner._opened()
        whole = self._checked(feeds)
        try:
            binding = session.io_binding()
            for name, value in self._uploaded.items():
                binding.bind_ortvalue_input(name, value)
            for name in feeds:
                binding.bind_cpu_input(name, np.ascontiguousarray(whole[name]))
            for spec in self.outputs:
                binding.bind_output(spec.name, "cpu")
            session.run_with_iobinding(binding)
            values = binding.copy_outputs_to_cpu()
        except Exception as error:
            raise EngineError(f"{self.name}: ONNX Runtime failed: {_one_line(error)}") from error
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def _release(self) -> None:
        super()._release()
        self._uploaded = {}


def _options(threads: int | None, optimization: str, prepacking: bool) -> Any:
    if optimization not in OPTIMIZATIONS:
        raise ValueError(
            f"optimization must be one of {', '.join(OPTIMIZATIONS)}, got {optimization!r:.40}"
        )
    if threads is not None:
        check_count("threads", threads)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: warnings are about graph optimisation
    # From the second run of a shape on it would keep a second arena for that shape: 1.7 times the
    # peak memory in the VAE's decoder, at the same speed.
    options.enable_mem_pattern = False
    # In the graph's own order. ONNX Runtime's would widen weights of half long before they are
    # used: 7.5 GB at SDXL's UNet in place of 0.5.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimization])
    if threads is not None:
        options.intra_op_num_threads = threads
    if not prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


@cache
def _share_arena() -> None:
    """One arena for all prepared graphs of this process, which grows by what is asked for."""
    memory = ort.OrtMemoryInfo("Cpu", _ARENA, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
    except Exception as error:  # noqa: BLE001  there is one already, which serves as well
        _log.debug("no arena of our own: %s", _one_line(error))


def _load(name: str, path: Path, options: Any, providers: Sequence[Provider]) -> Any:
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # its exception classes share no base but Exception
        raise EngineError(
            f"{name}: ONNX Runtime cannot load {path.name}: {_one_line(error)}"
        ) from error


def _check_available(name: str, wanted: Sequence[str]) -> None:
    available = ort.get_available_providers()
    for provider in wanted:
        if provider not in available:
            hint = "; run: pip install 'sdexport[gpu]'" if provider.startswith("CUDA") else ""
            raise EngineError(
                f"{name}: ONNX Runtime has no {provider} here; it has {', '.join(available)}{hint}"
            )


def _check_started(name: str, wanted: Sequence[str], started: Sequence[str]) -> None:
    """ONNX Runtime goes on without a provider that does not start; the caller asked for it."""
    for provider in wanted:
        if provider not in started:
            raise EngineError(
                f"{name}: ONNX Runtime could not start {provider} (no such device, or a driver "
                f"that is too old); it would run on {', '.join(started)}"
            )


def _specs(values: Sequence[Any]) -> list[TensorSpec]:
    return [
        TensorSpec(
            v.name,
            _DTYPES.get(v.type, v.type),
            tuple(d if isinstance(d, (int, str)) else ANY_SIZE for d in v.shape),
        )
        for v in values
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
