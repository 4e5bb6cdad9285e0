"""OpenVINO as a Session, from the same ONNX files."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engines.onnx_specs import graph_specs
from engines.session import EngineError, Feeds, SessionBase, check_count

try:
    import openvino as ov
except ImportError as error:
    raise ImportError("OpenVINO is not installed; run: pip install 'sdexport[openvino]'") from error

from engines import openvino_rewrite as rewritten

PRECISIONS = ("f32", "bf16", "f16")
Shapes = dict[str, tuple[int, ...]]


class OpenVinoSession(SessionBase):
    """An ONNX graph in OpenVINO.

    Each thread that calls `run` works on an infer request of its own; requests are kept and taken
    up again. The graph is compiled when it is first called, for the shapes of that call alone:
    which is faster, and spares it what OpenVINO would otherwise do for new shapes. A call of other
    shapes compiles it once more, for all shapes from then on.

    Args:
      path: the .onnx file; external data is looked up beside it, and mapped, not read.
      device: one of OpenVINO's devices, such as CPU or GPU.
      precision: of the arithmetic: f32, bf16 or f16. OpenVINO's own default is bf16 wherever the
        processor has it; here it is f32, so that every backend paints the same picture.
      threads: for one call; None leaves it to OpenVINO (every core).
      streams: calls that are computed at the same time, sharing the threads.
      cache_dir: folder for compiled graphs, which are then loaded instead of compiled; it is made
        if it is missing.
      static: False compiles for all shapes from the beginning.
      rewrite: False leaves the graph as it is. Otherwise, on a CPU and for fixed shapes,
        convolutions are computed with fewer multiplications where that is faster
        (engines/openvino_rewrite.py); in f32 that takes more memory for weights, and adds rounding
        errors of some 1e-5 of the output's scale.
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
        self._winograd = precision == "f32"
        self._rewrite = rewrite and device == "CPU"
        super().__init__(name, inputs, outputs)
        self._lock = threading.Lock()
        self._compiled: Any = None
        self._shapes: Shapes | None = None  # that it was compiled for; None for all
        self._idle: list[Any] = []
        with self._explained():
            self._core: Any = ov.Core()
            self._core.get_property(self._device, "FULL_DEVICE_NAME")  # fails if it is not there
            self._model: Any = self._core.read_model(str(path))
        if not static:
            self._compile(None)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        with self._lock:
            self._check_open()
            compiled = self._compiled_for({name: value.shape for name, value in feeds.items()})
            request = self._idle.pop() if self._idle else compiled.create_infer_request()
        try:
            request.infer({name: _tensor(value) for name, value in feeds.items()})
            return {
                spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.outputs
            }
        except RuntimeError as error:
            raise EngineError(f"{self.name}: OpenVINO failed: {_reason(error)}") from error
        finally:
            with self._lock:
                if compiled is self._compiled:
                    self._idle.append(request)

    def _compiled_for(self, shapes: Shapes) -> Any:
        if self._compiled is None:
            self._compile(shapes)
        elif self._shapes not in (None, shapes):
            self._release_compiled()  # before there are two
            self._compile(None)
        return self._compiled

    def _compile(self, shapes: Shapes | None) -> None:
        with self._explained():
            model, self._model = self._model or self._core.read_model(str(self._path)), None
            if shapes is not None:
                model.reshape({name: list(shape) for name, shape in shapes.items()})
                if self._rewrite:
                    rewritten.rewrite(model, winograd=self._winograd)
            self._compiled = self._core.compile_model(model, self._device, self._config)
        self._shapes = shapes

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EngineError(
                f"{self.name}: OpenVINO cannot load {self._path.name}: {_reason(error)}"
            ) from error

    def _release_compiled(self) -> None:
        self._idle.clear()
        self._compiled = None

    def _release(self) -> None:
        with self._lock:
            self._release_compiled()
            self._model = None


def _config(precision: str, threads: int | None, streams: int) -> dict[str, Any]:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r:.40}")
    if threads is not None:
        check_count("threads", threads)
    check_count("streams", streams)
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
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


def _tensor(value: np.ndarray) -> Any:
    """The array itself where OpenVINO can read it in place, else a copy."""
    shared = value.flags.c_contiguous and value.flags.writeable
    return ov.Tensor(value if shared else np.array(value, order="C"), shared_memory=True)


def _reason(error: Exception) -> str:
    """The telling lines of OpenVINO's message, without the trail of its source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    trail = re.compile(r"^(Exception from .*|FrontEnd API failed with \w+:)$")
    return " ".join(line for line in lines if line and not trail.match(line)) or repr(error)
