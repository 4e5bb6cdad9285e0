"""Compiling an ONNX file with OpenVINO, or opening what was compiled of it before."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdexport.engines.cache import graph_cache
from sdexport.engines.cache.profiles import Profile
from sdexport.engines.errors import EngineError, MissingDependencyError, engine_error
from sdexport.engines.guarded_files import CheckedFiles
from sdexport.engines.mapped_weights.mapped_files import MappedFiles, open_mapped
from sdexport.engines.messages import import_failure, one_line
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.ov.compiled_graph import Variant, plans_of
from sdexport.engines.ov.deferred_graphs import is_deferred, weights_bytes
from sdexport.engines.ov.graph_store import GraphStore, StoredGraph
from sdexport.engines.ov.model_cache import checked_cache
from sdexport.engines.ov.residency import drop_pages, dropped
from sdexport.engines.ov.scratch import scratch
from sdexport.engines.pages_ahead import pages_ahead
from sdexport.engines.process_memory import mapped_files_bytes
from sdexport.engines.session import TensorSpec
from sdexport.engines.telemetry import import_openvino

try:
    ov = import_openvino()
except ImportError as error:
    raise MissingDependencyError(
        f"OpenVINO is not installed; run: pip install 'sdexport[openvino]'{import_failure(error)}"
    ) from error

from sdexport.engines.ov.rewrites.rewritten_model import (
    UNBOUND,
    BoundInputs,
    rewrite_model,
)
from sdexport.engines.ov.rewrites.split import Shapes

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
COPIED = {"f32": 0.45, "bf16": 0.9}
"""Bytes that OpenVINO copies at least for each byte of a stored graph of SD 1.5's UNet or a larger
one; in f32 half of the file are weights of Winograd's tiles, which stay where they are mapped."""
_log = logging.getLogger(__name__)


@dataclass
class Compiled:
    """A compiled model, for some shapes only or (None) for all.

    bound: the bound inputs that it was split for. once: a second compiled model, which computes
    what depends only on the constants among them. idle: infer requests that no thread uses.
    prepared: the file that it was opened from, if `sdexport build` wrote that. keep: what the
    models read from memory. is_used: whether a call has come, as was expected. empty: inputs that
    it does not have, see rewrites.empty_products.
    """

    model: Any
    shapes: Shapes | None
    bound: BoundInputs = UNBOUND
    once: Any = None
    idle: list[Any] = field(default_factory=list)
    prepared: Path | None = None
    keep: Any = None
    is_used: bool = False
    empty: frozenset[str] = frozenset()

    def fits_first(self, shapes: Shapes, bound: BoundInputs) -> bool:
        """Whether the first call is the expected one; True after that."""
        if self.is_used or self.shapes is None:
            return True
        return (self.shapes, self.bound) == (shapes, bound)


class Compiler:
    """Compiles one ONNX file.

    Args:
      name: of the component. path: the .onnx file. inputs: of the graph.
      device, precision: see OpenVinoSession. config: for OpenVINO. rewrites: whether there are any.
      cache: OpenVINO's own folder of compiled graphs, if it is used.
      files, check: see OpenVinoSession. store: compiled graphs on disk, if they are used.
    Raises: EngineError: there is no such device, or the file cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        inputs: Sequence[TensorSpec],
        *,
        device: str,
        precision: str,
        config: Mapping[str, Any],
        rewrites: bool,
        cache: Path | None,
        files: CheckedFiles,
        store: GraphStore | None,
        check: Callable[[], object],
    ) -> None:
        self._name, self._path, self._inputs = name, path, inputs
        self._device, self._precision, self._config = device, precision, dict(config)
        self._rewrites, self._cache, self._files = rewrites, cache, files
        self._store, self._check = store, check
        self._read: _Read | None = None
        with self._explained():
            self._core: Any = ov.Core()
            self._core.get_property(device, "FULL_DEVICE_NAME")  # fails if there is none
            self._limit_kernels()
            if not self._has_stored():
                self._read = self._read_file()  # so that a damaged file is an error now

    def compiled(
        self, shapes: Shapes | None, bound: BoundInputs, empty: frozenset[str] = frozenset()
    ) -> Compiled:
        """The graph for some shapes (None: all), split for bound inputs if it can be.

        Args:
          empty: if it is for all shapes, inputs that have no elements.
        Raises: EngineError: OpenVINO cannot compile it. PackageError: its files changed.
        """
        if self._store is None or (shapes is None and empty):
            return self._new(shapes, bound, empty=empty)
        variant = self._variant(shapes, bound)
        found = self._store.find(variant)
        if found is not None:
            stored, is_prepared = found
            try:
                return self._opened(stored, shapes, bound, is_prepared=is_prepared)
            except RuntimeError as error:
                _log.warning(
                    "%s: %s is not used: OpenVINO cannot open it: %s",
                    *(self._name, stored.plan, one_line(reason_of(error), 200)),
                )
        return self._new_and_cached(shapes, bound, variant, self._store)

    def compile_into(self, model: Path, once: Path, shapes: Shapes, bound: BoundInputs) -> None:
        """Compile the graph with OpenVINO's own cache in two folders; see graph_store.CompileInto.

        Raises: EngineError: OpenVINO cannot compile it. PackageError: its files changed.
        """
        self._new(shapes, bound, caches=(model, once))

    def prepared_profiles(self) -> list[Profile]:
        """The sizes of the prepared graphs that fit this precision."""
        return [] if self._store is None else self._store.prepared_profiles(self._precision)

    def release(self) -> None:
        """Free the model that was read and not compiled yet."""
        self._read = None

    def _variant(self, shapes: Shapes | None, bound: BoundInputs) -> Variant:
        return Variant(self._precision, self._rewrites, shapes, bound.constants, bound.shared)

    def _has_stored(self) -> bool:
        """Whether there are compiled graphs of this file, which may or may not fit."""
        store = self._store
        if store is None:
            return False
        return any(plans_of(folder, store.name_in(folder)) for folder in store.folders())

    def _opened(
        self, stored: StoredGraph, shapes: Shapes | None, bound: BoundInputs, *, is_prepared: bool
    ) -> Compiled:
        """Raises: RuntimeError: OpenVINO cannot open it. PackageError: see `check`."""
        blobs = [blob for blob in (stored.model, stored.once) if blob is not None]
        mappings = [blob.mapping for blob in blobs]
        copied = COPIED["f32" if self._precision == "f32" else "bf16"] * len(mappings[0])
        with (
            pages_ahead(int(copied)),
            dropped(lambda: drop_pages(mappings), mapped_files_bytes),
        ):
            models = [
                self._core.import_model(blob.tensor, self._device, self._config) for blob in blobs
            ]
        taken = {name for value in models[0].inputs for name in value.get_names()}
        self._check()
        was_split = bool(bound.constants) and not (bound.constants & taken)
        return Compiled(
            models[0],
            shapes,
            bound if was_split else UNBOUND,
            models[1] if len(models) > 1 else None,
            prepared=stored.plan if is_prepared else None,
            keep=blobs,
        )

    def _new_and_cached(
        self, shapes: Shapes | None, bound: BoundInputs, variant: Variant, store: GraphStore
    ) -> Compiled:
        """Compile, and store the result in the user's cache if it can be, now or later."""
        made: list[Compiled] = []
        folder = store.cache

        def compile_into(model: Path, once: Path) -> None:
            made.append(self._new(shapes, bound, caches=(model, once)))

        if folder is not None:
            try:
                problem = graph_cache.no_room(folder, weights_bytes(self._path))
                if not problem and not is_deferred(self._path, variant):
                    plan = store.write(folder, variant, compile_into).plan
                    graph_cache.evict(folder, keep=plan)
            except (EngineError, OSError) as error:
                if not made and isinstance(error, EngineError) and error.__cause__ is not None:
                    _log.info("%s: %s", self._name, one_line(error))
                problem = one_line(error).partition(";")[0]
            if problem:
                _log.warning("%s: its compiled graph is not cached: %s", self._name, problem)
        return made[0] if made else self._new(shapes, bound)

    def _new(
        self,
        shapes: Shapes | None,
        bound: BoundInputs,
        *,
        empty: frozenset[str] = frozenset(),
        caches: tuple[Path, Path] | None = None,
    ) -> Compiled:
        """Rewrite and compile the graph; caches: see graph_store.CompileInto."""
        if shapes is not None:
            empty = frozenset(name for name, shape in shapes.items() if 0 in shape)
        configs = [self._config, self._config]
        if caches is not None:
            configs = [self._config | {"CACHE_DIR": str(folder)} for folder in caches]
        reads: list[_Read] = []

        def read() -> Any:
            reads.append(self._take_read())
            return reads[-1].model

        with (
            self._explained(),
            checked_cache(self._cache, self._name, self._check),
            scratch(graph_cache.scratch_folder()) as weights,
        ):

            def drop() -> None:
                for each in reads:
                    each.mapped.free()
                drop_pages(weights.mappings)

            with dropped(drop, mapped_files_bytes):
                rewritten = rewrite_model(
                    read,
                    self._inputs,
                    shapes,
                    precision=self._precision,
                    bound=bound,
                    empty=empty,
                    convolutions=self._rewrites,
                    in_bfloat16=self._in_bfloat16,
                )
                once = rewritten.once
                if once is not None:
                    once = self._core.compile_model(once, self._device, configs[1])
                model = self._core.compile_model(rewritten.model, self._device, configs[0])
        return Compiled(model, shapes, rewritten.bound, once, keep=weights, empty=empty)

    def _take_read(self) -> _Read:
        """The file as it was read first, then, as rewrites change it, read anew in each call."""
        read, self._read = self._read, None
        return read if read is not None else self._read_file()

    def _read_file(self) -> _Read:
        weights = [self._path.with_name(name) for name in survey(self._path).locations]
        with self._files.unchanged():
            model, mapped = open_mapped(weights, lambda: self._core.read_model(str(self._path)))
        constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
        return _Read(model, mapped, constants)

    @property
    def _in_bfloat16(self) -> bool:
        """Whether products and convolutions are computed in bfloat16 here."""
        if self._device != "CPU" or self._precision not in ("bf16", "i8"):
            return False
        return "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def _limit_kernels(self) -> None:
        """Limit what OpenVINO keeps for each size that it has seen."""
        if not self._device.startswith(("GPU", "NPU")):  # AUTO and others may use the CPU
            try:
                self._core.set_property("CPU", {"CPU_RUNTIME_CACHE_CAPACITY": str(MOST_KERNELS)})
            except RuntimeError as error:
                _log.info("%s: OpenVINO's cache of kernels is not limited: %s", self._name, error)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise engine_error(
                f"{self._name}: OpenVINO cannot load {self._path.name}: {reason_of(error)}"
            ) from error


@dataclass
class _Read:
    """A model as it was read. mapped: its files of weights, as long as one of `constants` lives."""

    model: Any
    mapped: MappedFiles
    constants: list[Any]


def reason_of(error: Exception) -> str:
    """The lines of OpenVINO's message that say something, without its trail of source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    trail = re.compile(r"^(Exception from .*|FrontEnd API failed with \w+:)$")
    return " ".join(line for line in lines if line and not trail.match(line)) or repr(error)
