"""OpenVINO as a Session, from the same ONNX files."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    engine_error,
)
from sdexport.engines.exit_actions import CANCEL
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.engines.messages import import_failure
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.session import (
    BoundSession,
    Feeds,
    GraphSource,
    Session,
    SessionBase,
    check_count,
)
from sdexport.engines.telemetry import import_openvino

try:
    ov = import_openvino()
except ImportError as error:
    raise MissingDependencyError(
        f"OpenVINO is not installed; run: pip install 'sdexport[openvino]'{import_failure(error)}"
    ) from error

from sdexport.engines.ov.model_cache import cache_folder, checked_cache
from sdexport.engines.ov.rewrites.rewritten_model import UNBOUND, BoundInputs, rewrite_model
from sdexport.engines.ov.rewrites.split import ONCE, Shapes

PRECISIONS = ("f32", "bf16", "f16", "i8")
MOST_KERNELS = 100
"""Kernels of each kind (convolution, matrix product, ...) that a graph compiled for all shapes
keeps; the least recently used one is dropped first. A UNet or decoder uses some ten of a kind for
one size. OpenVINO's own limit is 5000, and each new size of image adds 4 MB.

The price is paid where many sizes alternate: each kernel of a size that was dropped is made again.
For 40 sizes of the demo model in random order, 2 steps, a limit of 100 costs 14 % more CPU time for
an image than one of 5000 (10 ms), 300 costs 11 %, 500 6 %. After 200 sizes the process has 353, 405
and 457 MB with these three, and only with 100 has it stopped growing: the limit is that of each
kind, and kinds that a size uses once or twice reach it last. There is no limit that has both. 100
it is, because the price is in milliseconds and does not grow with the image: SD 1.5's UNet takes
0.1 s once for a size, on one core, where one call takes 0.6 s at 128 by 128 pixels."""
_log = logging.getLogger(__name__)


@dataclass
class _Compiled:
    """A compiled model, for some shapes only or (None) for all.

    bound: the bound inputs that it was split for. once: a second compiled model, which computes
    what depends only on the constants among them. idle: infer requests that no thread uses.
    """

    model: Any
    shapes: Shapes | None
    bound: BoundInputs = UNBOUND
    once: Any = None
    idle: list[Any] = field(default_factory=list)


class OpenVinoSession(SessionBase):
    """An ONNX graph in OpenVINO.

    Each thread that calls `run` gets an infer request of its own; requests are reused.

    The first call compiles the graph for the shapes of that call, which gives faster code and
    avoids OpenVINO's work for new shapes. A call with other shapes compiles it again, this time for
    all shapes. With bound inputs, what depends only on them is computed once, and what is the same
    for both halves of the batch is computed for one of them (rewrites/split.py). A session that is
    called with and without bound inputs compiles for each in turn, then without splitting.

    Args:
      path: the .onnx file; its external data is memory-mapped from the same folder.
      device: one of OpenVINO's devices, such as CPU or GPU.
      precision: of the arithmetic: f32, bf16, f16 or i8. OpenVINO's own default is bf16 wherever
        the processor supports it; here it is f32, so that every backend generates the same image.
        i8 is bf16 with 8 bits after each normalisation (rewrites/int8.py): the fastest, and the
        image may differ visibly.
      threads: for one call; None leaves it to OpenVINO (every core).
      streams: calls that are computed at the same time; they share the threads.
      cache_dir: folder for compiled graphs, which are then loaded instead of compiled; they go to
        its subfolder `sdexport`, each with its hash (model_cache.py).
      static: False compiles for all shapes from the start.
      rewrite: False turns the rewrites of docs/openvino-rewrites.md off. They apply to fixed shapes
        on a CPU. In f32 they need more memory for weights, and add rounding errors of about 1e-5
        of the output's scale.
      files: those that are opened, here and by calls that compile; their identity is compared
        before and after that.
    Raises: InvalidArgumentError: an option out of range. EngineError: the file cannot be loaded,
      there is no such device, or the cache folder cannot be written. PackageError: the files
      changed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "CPU",
        precision: str = "f32",
        threads: int | None = None,
        streams: int = 1,
        cache_dir: str | Path | None = None,
        static: bool = True,
        rewrite: bool = True,
        files: CheckedFiles = UNCHECKED,
    ) -> None:
        path = Path(path)
        name = path.parent.name or path.stem
        config = _config(precision, threads, streams)
        with files.unchanged():
            inputs, outputs = graph_specs(path)
        self._cache = None if cache_dir is None else cache_folder(Path(str(cache_dir)), name)
        if self._cache is not None:
            config["CACHE_DIR"] = str(self._cache)
        self._path, self._device, self._config = path, str(device), config
        self._files = files
        self._precision = precision
        self._rewrites = rewrite and device == "CPU"
        super().__init__(name, inputs, outputs)
        self._source = GraphSource(path)
        self._lock = threading.Lock()
        self._compiled: _Compiled | None = None
        self._splits = self._rewrites
        with self._explained():
            self._core: Any = ov.Core()
            self._core.get_property(self._device, "FULL_DEVICE_NAME")  # fails if there is none
            self._bound_memory()
            self._model: Any = self._read_file()
        if not static:
            self._compiled = self._compile(None)

    def _bound_memory(self) -> None:
        """Limit what OpenVINO keeps for each size that it has seen."""
        if not self._device.startswith(("GPU", "NPU")):  # AUTO and others may use the CPU
            try:
                self._core.set_property("CPU", {"CPU_RUNTIME_CACHE_CAPACITY": str(MOST_KERNELS)})
            except RuntimeError as error:
                _log.info("%s: OpenVINO's cache of kernels is not limited: %s", self.name, error)

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _Bound(self, constants, shared)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self.compute(feeds, None)

    def compute(self, feeds: Feeds, session: _Bound | None) -> dict[str, np.ndarray]:
        """Run with checked feeds for all inputs, some of which `session` binds."""
        with self._lock:
            self._check_open()
            bound = session.bound if session is not None else UNBOUND
            compiled = self._compiled = self._compiled_for(feeds, bound)
            idle = compiled.idle
            request = idle.pop() if idle else compiled.model.create_infer_request()
        try:
            bound = compiled.bound
            values = {
                name: _half(value) if name in bound.shared else value
                for name, value in feeds.items()
                if name not in bound.constants
            }
            if session is not None and bound.constants:
                values |= session.computed_once(compiled)
            with CANCEL.during(request.cancel):
                request.infer({name: _tensor(value) for name, value in values.items()})
            outputs = {
                spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.outputs
            }
        except RuntimeError as error:
            raise engine_error(f"{self.name}: OpenVINO failed: {_reason(error)}") from error
        finally:
            with self._lock:
                if compiled is self._compiled:
                    compiled.idle.append(request)
        if any(not array.size for array in outputs.values()):  # it raises nothing
            raise engine_error(
                f"{self.name}: OpenVINO gave no output: it could not allocate memory"
            )
        return outputs

    def _compiled_for(self, feeds: Feeds, bound: BoundInputs) -> _Compiled:
        """The present compiled model or a new one in its place; there is never more than one."""
        present, shapes = self._compiled, {name: value.shape for name, value in feeds.items()}
        if present is not None:
            if present.shapes is None:
                return present
            if present.shapes != shapes:
                self._compiled = present = None
                return self._compile(None)
            is_split = bool(present.bound.constants)
            if present.bound == bound or not (is_split or self._splits):
                return present
            self._splits = self._splits and not is_split
        self._compiled = present = None
        return self._compile(shapes, bound if self._splits else UNBOUND)

    def _compile(self, shapes: Shapes | None, bound: BoundInputs = UNBOUND) -> _Compiled:
        with self._explained(), checked_cache(self._cache, self.name):
            rewritten = rewrite_model(
                self._read,
                self.inputs,
                shapes,
                precision=self._precision,
                bound=bound,
                convolutions=self._rewrites,
            )
            if rewritten.bound != bound:
                self._splits = False
            once = rewritten.once
            if once is not None:
                once = self._core.compile_model(once, self._device, self._config)
            model = self._core.compile_model(rewritten.model, self._device, self._config)
        return _Compiled(model, shapes, rewritten.bound, once)

    def _read(self) -> Any:
        """The model that was read first, then, as rewrites change it, a new one in each call."""
        model, self._model = self._model, None
        return model if model is not None else self._read_file()

    def _read_file(self) -> Any:
        with self._files.unchanged():
            return self._core.read_model(str(self._path))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise engine_error(
                f"{self.name}: OpenVINO cannot load {self._path.name}: {_reason(error)}"
            ) from error

    def _release(self) -> None:
        with self._lock:
            self._compiled = self._model = None


class _Bound(BoundSession):
    """Bound inputs, and what was computed from the constants among them."""

    def __init__(self, parent: OpenVinoSession, constants: Feeds, shared: Sequence[str]) -> None:
        super().__init__(parent, constants, shared)
        self._owner = parent
        # without constants there is nothing to split a model for
        self.bound = BoundInputs(frozenset(constants), self._shared) if constants else UNBOUND
        self._lock = threading.Lock()
        self._once: tuple[_Compiled | None, Feeds] = None, {}

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._owner.compute(self._checked_feeds(feeds), self)

    def computed_once(self, compiled: _Compiled) -> Feeds:
        """What the second model computes from the constants, by name; kept for later calls."""
        if compiled.once is None:
            return {}
        with self._lock:
            if self._once[0] is not compiled:
                constants = {name: _tensor(value) for name, value in self._constants.items()}
                outputs = compiled.once(constants)
                count = len(compiled.once.outputs)
                self._once = compiled, {ONCE.format(i): np.array(outputs[i]) for i in range(count)}
            return self._once[1]

    def _release(self) -> None:
        super()._release()
        self._once = None, {}


def _config(precision: str, threads: int | None, streams: int) -> dict[str, Any]:
    if precision not in PRECISIONS:
        raise InvalidArgumentError(
            f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r:.40}"
        )
    if threads is not None:
        check_count("threads", threads)
    check_count("streams", streams)
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "i8" else precision,
        "NUM_STREAMS": str(streams),
    }
    if precision == "f32":  # without the plugin's own trade of accuracy for speed
        config["EXECUTION_MODE_HINT"] = "ACCURACY"
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    return config


def _half(value: np.ndarray) -> np.ndarray:
    return value[: len(value) // 2]


def _tensor(value: np.ndarray) -> Any:
    """The array itself where OpenVINO can read it in place, else a copy."""
    in_place = value.flags.c_contiguous and value.flags.writeable
    return ov.Tensor(value if in_place else np.array(value, order="C"), shared_memory=True)


def _reason(error: Exception) -> str:
    """The lines of OpenVINO's message that say something, without its trail of source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    trail = re.compile(r"^(Exception from .*|FrontEnd API failed with \w+:)$")
    return " ".join(line for line in lines if line and not trail.match(line)) or repr(error)
