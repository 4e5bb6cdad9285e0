"""OpenVINO as a Session, from the same ONNX files."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.session import (
    ANY_SIZE,
    BoundSession,
    Feeds,
    Session,
    SessionBase,
    check_count,
)

try:
    import openvino as ov
except ImportError as error:
    raise ImportError("OpenVINO is not installed; run: pip install 'sdexport[openvino]'") from error

from sdexport.engines.ov.rewrites.convolutions import rewrite as rewrite_for_speed
from sdexport.engines.ov.rewrites.int8 import quantize
from sdexport.engines.ov.rewrites.split import ONCE, Shapes, split

PRECISIONS = ("f32", "bf16", "f16", "i8")


@dataclass
class _Plan:
    """A compiled model, for some shapes alone or (None) for all.

    held, twice: the bound inputs that it was cut for, and those that it takes one half of; once:
      computes what depends on the held ones alone.
    """

    compiled: Any
    shapes: Shapes | None
    held: frozenset[str] = frozenset()
    twice: frozenset[str] = frozenset()
    once: Any = None
    idle: list[Any] = field(default_factory=list)


class OpenVinoSession(SessionBase):
    """An ONNX graph in OpenVINO.

    Each thread that calls `run` works on an infer request of its own; requests are kept and taken
    up again. The graph is compiled when it is first called, for the shapes of that call alone:
    which is faster, and spares it what OpenVINO would otherwise do for new shapes. A call of other
    shapes compiles it once more, for all shapes from then on. Where inputs are bound, what depends
    on them alone is computed once, and what is the same for both halves of a batch for one of them
    (split.py); a session that is called both ways compiles for each in turn, then
    without that.

    Args:
      path: the .onnx file; external data is looked up beside it, and mapped, not read.
      device: one of OpenVINO's devices, such as CPU or GPU.
      precision: of the arithmetic: f32, bf16, f16, or i8. OpenVINO's own default is bf16 wherever
        the processor has it; here it is f32, so that every backend paints the same picture. i8 is
        bf16 with 8 bits for what follows a normalisation (int8.py): the fastest,
        and a picture that may differ to the eye.
      threads: for one call; None leaves it to OpenVINO (every core).
      streams: calls that are computed at the same time, sharing the threads.
      cache_dir: folder for compiled graphs, which are then loaded instead of compiled; it is made
        if it is missing.
      static: False compiles for all shapes from the beginning.
      rewrite: False leaves the graph as it is. Otherwise, on a CPU and for fixed shapes, it is cut
        for bound inputs as said above, and convolutions are computed with fewer multiplications
        where that is faster (convolutions.py); in f32 that takes more memory for
        weights, and adds rounding errors of some 1e-5 of the output's scale.
    Raises: ValueError: an option out of range. EngineError: the file cannot be loaded, the device
      is not there, or the cache folder cannot be written.
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
    ) -> None:
        path = Path(path)
        name = path.parent.name or path.stem
        config = _config(precision, threads, streams)
        inputs, outputs = graph_specs(path)
        if cache_dir is not None:
            config["CACHE_DIR"] = str(_made(Path(str(cache_dir)), name))
        self._path, self._device, self._config = path, str(device), config
        self._precision = precision
        self._rewrite = rewrite and device == "CPU"
        super().__init__(name, inputs, outputs)
        self._lock = threading.Lock()
        self._plan: _Plan | None = None
        self._cuts = self._rewrite
        with self._explained():
            self._core: Any = ov.Core()
            self._core.get_property(self._device, "FULL_DEVICE_NAME")  # fails if it is not there
            self._model: Any = self._read()
        if not static:
            self._plan = self._compiled(None)

    def bind(self, *, twice: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _Bound(self, constants, twice)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self.compute(feeds, None)

    def compute(self, feeds: Feeds, bound: _Bound | None) -> dict[str, np.ndarray]:
        """Run with checked feeds of all inputs, some of which are bound."""
        with self._lock:
            self._check_open()
            plan = self._plan = self._plan_for(feeds, bound)
            request = plan.idle.pop() if plan.idle else plan.compiled.create_infer_request()
        try:
            given = {n: _half(v) if n in plan.twice else v for n, v in feeds.items()}
            if bound is not None and plan.held:
                given = {n: v for n, v in given.items() if n not in plan.held}
                given |= bound.once(plan)
            request.infer({name: _tensor(value) for name, value in given.items()})
            return {
                spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.outputs
            }
        except RuntimeError as error:
            raise EngineError(f"{self.name}: OpenVINO failed: {_reason(error)}") from error
        finally:
            with self._lock:
                if plan is self._plan:
                    plan.idle.append(request)

    def _plan_for(self, feeds: Feeds, bound: _Bound | None) -> _Plan:
        """The plan there is, or a new one in its place; never two at a time."""
        plan, shapes = self._plan, {name: value.shape for name, value in feeds.items()}
        asked = (bound.held, bound.twice) if bound is not None else (frozenset(), frozenset())
        if plan is not None:
            if plan.shapes is None:
                return plan
            if plan.shapes != shapes:
                self._plan = plan = None
                return self._compiled(None)
            cut = bool(plan.held)
            if (plan.held, plan.twice) == asked or not (cut or self._cuts):
                return plan
            self._cuts = self._cuts and not cut
        self._plan = plan = None
        return self._compiled(shapes, *(asked if self._cuts else ()))

    def _compiled(
        self,
        shapes: Shapes | None,
        held: frozenset[str] = frozenset(),
        twice: frozenset[str] = frozenset(),
    ) -> _Plan:
        with self._explained():
            model, self._model = self._model or self._read(), None
            once = None
            if shapes is not None and held:
                try:
                    model, once = split(model, shapes, self._halves(shapes, twice), held, twice)
                except ValueError:  # this graph cannot be cut
                    self._cuts, held, twice = False, frozenset(), frozenset()
                    model = self._read()
            if shapes is not None:
                if not held:
                    model.reshape({name: list(shape) for name, shape in shapes.items()})
                if self._rewrite:
                    rewrite_for_speed(model, winograd=self._precision == "f32")
            if self._precision == "i8":
                quantize(model)
            if once is not None:
                once = self._core.compile_model(once, self._device, self._config)
            compiled = self._core.compile_model(model, self._device, self._config)
        return _Plan(compiled, shapes, held, twice, once)

    def _read(self) -> Any:
        return self._core.read_model(str(self._path))

    def _halves(self, shapes: Shapes, twice: frozenset[str]) -> Shapes:
        """The shapes for one half of the batch.

        Raises: ValueError: the batch is not one dimension with a name.
        """
        batch = {spec.shape[0] for spec in self.inputs if spec.name in twice}
        if len(batch) > 1 or not all(isinstance(name, str) and name != ANY_SIZE for name in batch):
            raise ValueError(f"{self.name}: the batch has no name")
        return {
            spec.name: tuple(
                size // 2 if name in batch else size
                for name, size in zip(spec.shape, shapes[spec.name], strict=True)
            )
            for spec in self.inputs
        }

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EngineError(
                f"{self.name}: OpenVINO cannot load {self._path.name}: {_reason(error)}"
            ) from error

    def _release(self) -> None:
        with self._lock:
            self._plan = self._model = None


class _Bound(BoundSession):
    """Inputs that are held, and what was computed from them alone."""

    def __init__(self, parent: OpenVinoSession, constants: Feeds, twice: Sequence[str]) -> None:
        super().__init__(parent, constants, twice)
        self._owner = parent
        self.held, self.twice = frozenset(self._held), self._twice
        self._lock = threading.Lock()
        self._done: tuple[_Plan | None, Feeds] = None, {}

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._owner.compute(self._checked(feeds), self)

    def once(self, plan: _Plan) -> Feeds:
        """What the plan computes from the held inputs, by name."""
        if plan.once is None:
            return {}
        with self._lock:
            if self._done[0] is not plan:
                found = plan.once({name: _tensor(value) for name, value in self._held.items()})
                values = (np.array(found[i]) for i in range(len(plan.once.outputs)))
                self._done = plan, {ONCE.format(i): value for i, value in enumerate(values)}
            return self._done[1]

    def _release(self) -> None:
        super()._release()
        self._done = None, {}


def _config(precision: str, threads: int | None, streams: int) -> dict[str, Any]:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r:.40}")
    if threads is not None:
        check_count("threads", threads)
    check_count("streams", streams)
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "i8" else precision,
        "NUM_STREAMS": str(streams),
    }
    if precision == "f32":  # nor any shortcut that the plugin would take for speed
        config["EXECUTION_MODE_HINT"] = "ACCURACY"
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    return config


def _made(folder: Path, name: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(
            f"{name}: the cache folder {folder} cannot be made: {error.strerror}"
        ) from error
    return folder


def _half(value: np.ndarray) -> np.ndarray:
    return value[: len(value) // 2]


def _tensor(value: np.ndarray) -> Any:
    """The array itself where OpenVINO can read it in place, else a copy."""
    shared = value.flags.c_contiguous and value.flags.writeable
    return ov.Tensor(value if shared else np.array(value, order="C"), shared_memory=True)


def _reason(error: Exception) -> str:
    """The telling lines of OpenVINO's message, without the trail of its source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    trail = re.compile(r"^(Exception from .*|FrontEnd API failed with \w+:)$")
    return " ".join(line for line in lines if line and not trail.match(line)) or repr(error)
