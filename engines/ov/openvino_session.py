"""OpenVINO as a Session, from the same ONNX files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.cache.profiles import nearest
from sdexport.engines.cache.remembered_hashes import is_nothing_remembered
from sdexport.engines.errors import InvalidArgumentError, engine_error
from sdexport.engines.exit_actions import CANCEL
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.ov.compiled_graph import installed_version
from sdexport.engines.ov.compiler import Compiled, Compiler, ov, reason_of
from sdexport.engines.ov.graph_store import GraphStore
from sdexport.engines.ov.model_cache import cache_folder
from sdexport.engines.ov.rewrites.rewritten_model import UNBOUND, BoundInputs
from sdexport.engines.ov.rewrites.split import ONCE, Shapes
from sdexport.engines.pages_ahead import give_back
from sdexport.engines.run_record import note_run
from sdexport.engines.session import (
    BoundSession,
    Feeds,
    GraphSource,
    Session,
    SessionBase,
    check_count,
)

PREPARED = "prepared"
"""GraphSource.form of a compiled graph that `sdexport build` wrote."""
LARGE_ONCE = 32_000_000
"""Bytes of what is computed once, as of the weights to which LoRAs are added, from which on nothing
keeps them when a bound session is closed: an idle infer request keeps the inputs of its last call.
A new request takes longer."""
PRECISIONS = ("f32", "bf16", "f16", "i8")


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
      plan: next to it are the graphs that `sdexport build` compiled; package: what they must have
        been built for. Without `digest` (sidecar.model_digest of the file) neither these are used
        nor those of the user's cache, which calls that compile write to.
      cached: False leaves the user's cache alone.
      check: called when a graph was compiled or opened, before it is run or stored; raises
        PackageError if the file or its weights were altered.
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
        plan: Path | None = None,
        digest: str | None = None,
        package: str | None = None,
        cached: bool = True,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        path = Path(path)
        name = path.parent.name or path.stem
        config = _config(precision, threads, streams)
        with files.unchanged():
            inputs, outputs = graph_specs(path)
        cache = None if cache_dir is None else cache_folder(Path(str(cache_dir)), name)
        if cache is not None:
            config["CACHE_DIR"] = str(cache)
        rewrites = rewrite and device == "CPU"
        super().__init__(name, inputs, outputs)
        self._source = GraphSource(path)
        self._lock = threading.Lock()
        self._compiled: Compiled | None = None
        self._splits = rewrites
        store = None
        if digest is not None and cache is None and device == "CPU":
            store = GraphStore(
                name if path.stem == "model" else f"{name}.{path.stem}",
                digest,
                installed_version(),
                inputs,
                outputs,
                prepared=None if plan is None else Path(plan).parent,
                package=package,
                tensor=ov.Tensor,
                cached=cached,
                reads_all=is_nothing_remembered(),
            )
        self._compiler = Compiler(
            name,
            path,
            inputs,
            device=str(device),
            precision=precision,
            config=config,
            rewrites=rewrites,
            cache=cache,
            files=files,
            store=store,
            check=check,
        )
        if not static:
            self._compiled = self._compile(None)

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _Bound(self, constants, shared)

    def expect(
        self, shapes: Shapes, *, constants: Collection[str] = (), shared: Collection[str] = ()
    ) -> None:
        with self._lock:
            if self._compiled is None and not self._closed:
                self._compiled = self._compile(shapes, self._bound(constants, shared))

    def compile_into(
        self,
        model: Path,
        once: Path,
        shapes: Shapes,
        *,
        constants: Collection[str] = (),
        shared: Collection[str] = (),
    ) -> None:
        """Compile for `expect`'s arguments into two folders; see Compiler.compile_into."""
        self._compiler.compile_into(model, once, shapes, self._bound(constants, shared))

    def _bound(self, constants: Collection[str], shared: Collection[str]) -> BoundInputs:
        """What `compute` compiles for when inputs of these names are bound."""
        if not (constants and self._splits):
            return UNBOUND
        return BoundInputs(frozenset(constants), frozenset(shared))

    def source(self, feeds: Feeds) -> GraphSource:
        compiled = self._compiled
        if compiled is not None and compiled.prepared is not None:
            return GraphSource(compiled.prepared, PREPARED)
        return self._source

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        profiles = self._compiler.prepared_profiles()
        return nearest(profiles, sizes) if profiles else dict(sizes)

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self.compute(feeds, None)

    def compute(self, feeds: Feeds, session: _Bound | None) -> dict[str, np.ndarray]:
        """Run with checked feeds for all inputs, some of which `session` binds."""
        with self._lock:
            self._check_open()
            bound = session.bound if session is not None else UNBOUND
            compiled = self._compiled = self._compiled_for(feeds, bound)
            compiled.is_used = True
            idle = compiled.idle
            request = idle.pop() if idle else compiled.model.create_infer_request()
        if compiled.prepared is not None:
            note_run(self.name, PREPARED)
        try:
            bound = compiled.bound
            values = {
                name: _tensor(_half(value) if name in bound.shared else value)
                for name, value in feeds.items()
                if name not in bound.constants and value.size
            }
            if session is not None and bound.constants:
                values |= session.computed_once(compiled)
            with CANCEL.during(request.cancel):
                request.infer(values)
            outputs = {
                spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.outputs
            }
        except RuntimeError as error:
            raise engine_error(f"{self.name}: OpenVINO failed: {reason_of(error)}") from error
        finally:
            with self._lock:
                if compiled is self._compiled:
                    compiled.idle.append(request)
        if any(not array.size for array in outputs.values()):  # it raises nothing
            raise engine_error(
                f"{self.name}: OpenVINO gave no output: it could not allocate memory"
            )
        return outputs

    def _compiled_for(self, feeds: Feeds, bound: BoundInputs) -> Compiled:
        """The present compiled model or a new one in its place; there is never more than one."""
        present, shapes = self._compiled, {name: value.shape for name, value in feeds.items()}
        if present is not None and not present.fits_first(
            shapes, bound if self._splits else UNBOUND
        ):
            present = None  # compiled for a call that did not come
        if present is not None:
            empty = frozenset(name for name, shape in shapes.items() if 0 in shape)
            if present.shapes is None and present.empty == empty:
                return present
            if present.shapes != shapes:
                self._compiled = present = None
                return self._compile(None, empty=empty)
            is_split = bool(present.bound.constants)
            if present.bound == bound or not (is_split or self._splits):
                return present
            self._splits = self._splits and not is_split
        self._compiled = present = None
        return self._compile(shapes, bound if self._splits else UNBOUND)

    def _compile(
        self,
        shapes: Shapes | None,
        bound: BoundInputs = UNBOUND,
        empty: frozenset[str] = frozenset(),
    ) -> Compiled:
        compiled = self._compiler.compiled(shapes, bound, empty)
        if compiled.bound != bound:
            self._splits = False
        return compiled

    def forget_requests(self, compiled: Compiled) -> None:
        """Free infer requests that no thread uses, and the inputs of their last calls."""
        with self._lock:
            compiled.idle.clear()

    def _release(self) -> None:
        with self._lock:
            self._compiled = None
            self._compiler.release()
        give_back()


class _Bound(BoundSession):
    """Bound inputs, and what was computed from the constants among them."""

    def __init__(self, parent: OpenVinoSession, constants: Feeds, shared: Sequence[str]) -> None:
        super().__init__(parent, constants, shared)
        self._owner = parent
        # without constants there is nothing to split a model for
        self.bound = BoundInputs(frozenset(constants), self._shared) if constants else UNBOUND
        self._lock = threading.Lock()
        self._once: tuple[Compiled | None, Any, dict[str, Any]] = None, None, {}

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._owner.compute(self._checked_feeds(feeds), self)

    def computed_once(self, compiled: Compiled) -> dict[str, Any]:
        """What the second model computes from the constants, by name; kept for later calls."""
        if compiled.once is None:
            return {}
        with self._lock:
            if self._once[0] is not compiled:
                request = compiled.once.create_infer_request()
                with CANCEL.during(request.cancel):
                    request.infer(
                        {name: _tensor(v) for name, v in self._constants.items() if v.size}
                    )
                count = len(compiled.once.outputs)
                outputs = {ONCE.format(i): request.get_output_tensor(i) for i in range(count)}
                self._once = compiled, request, outputs  # the request's own memory
            return self._once[2]

    def _release(self) -> None:
        super()._release()
        with self._lock:
            compiled, _, outputs = self._once
            self._once = None, None, {}
        if compiled and sum(each.get_byte_size() for each in outputs.values()) >= LARGE_ONCE:
            self._owner.forget_requests(compiled)


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
