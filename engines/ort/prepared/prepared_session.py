"""A prepared graph as a Session of ONNX Runtime."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from sdexport.engines.cache.engine_files import EngineCheck
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.cache.staleness import stale_reasons
from sdexport.engines.errors import EngineError, PackageError
from sdexport.engines.guarded_files import CheckedFiles
from sdexport.engines.mapped_weights.mapped_files import open_mapped
from sdexport.engines.messages import one_line
from sdexport.engines.ort.onnxruntime_session import OnnxRuntimeBase
from sdexport.engines.ort.prepared import prepared_graph as prepared
from sdexport.engines.ort.runtime_library import CPU, load, ort, session_options
from sdexport.engines.run_record import note_run
from sdexport.engines.session import Feeds, GraphSource, Session

PREPARED = "prepared"
"""GraphSource.form of a graph that `sdexport build` wrote."""
_log = logging.getLogger(__name__)


def open_prepared(
    plan: Path,
    *,
    original: Callable[..., Session],
    digest: str | None,
    package: str | None,
    threads: int | None,
) -> Session:
    """Open a prepared graph; or the original one, after a warning, if it cannot be used.

    It cannot be used if it was built from another file, for another package, with another version
    or for another processor, or if one of its files is damaged, altered or missing.

    Args:
      plan: the graph that `sdexport build` prepared.
      original: opens the graph that it was built from, for sizes that it does not take too; its
        argument `unused` says why the prepared one is not run.
      digest, package: see staleness.Requirements; None is not compared.
      threads: see OnnxRuntimeSession.
    """
    try:
        sidecar = Sidecar.read(plan)
        required = prepared.requirements(digest=digest, package=package, version=ort.__version__)
        reasons = stale_reasons(sidecar, required)
        if not reasons:
            return opened(plan, sidecar, original, threads)
    except (EngineError, PackageError, OSError) as error:
        reasons = [str(error)]
    _log.warning(
        "%s: its prepared graph is not used: %s; prepare it again: sdexport build PACKAGE "
        "--backend onnxruntime --component %s --rebuild-stale",
        plan.stem,
        "; ".join(reasons),
        plan.stem,
    )
    return original(unused=f"{plan.name} was prepared for it and is not used: {'; '.join(reasons)}")


def opened(
    plan: Path,
    sidecar: Sidecar,
    original: Callable[..., Session],
    threads: int | None,
    *,
    source: GraphSource | None = None,
) -> Session:
    """The session of a prepared graph, whose weights are hashed while it opens.

    For the arguments and what is raised see PreparedSession.
    """
    check = EngineCheck(plan, sidecar)
    check.wait_for(plan)
    session = PreparedSession(plan, sidecar, check.files, original, threads=threads, source=source)
    try:
        check.wait()
    except BaseException:
        session.close()
        raise
    return session


class PreparedSession(OnnxRuntimeBase):
    """A graph that was prepared for this processor; see prepared.prepared_graph.

    Args:
      plan: the prepared graph. sidecar: its own. files: both of its files, as they were hashed.
      original: opens the graph that it was built from, for sizes that the prepared one does not
        take.
      threads: see OnnxRuntimeSession.
      source: what it counts as, if `sdexport build` did not write it.
    Raises: EngineError: it cannot be loaded. PackageError: a file changed since it was hashed.
    """

    def __init__(
        self,
        plan: Path,
        sidecar: Sidecar,
        files: CheckedFiles,
        original: Callable[[], Session],
        *,
        threads: int | None,
        source: GraphSource | None = None,
    ) -> None:
        name = sidecar.component
        with files.unchanged():
            # else the copies of weights in the file are not used
            options = session_options(threads, "none", prepared.is_aligned(plan))
            _share_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
            session, self._weights = open_mapped(
                [prepared.data_path(plan)], lambda: load(name, plan, options, CPU)
            )
        super().__init__(session, name, sidecar.inputs, sidecar.outputs)
        self._prepared = source or GraphSource(plan, PREPARED)
        self._open_original = original
        self._original: Session | None = None
        self._input_names = [value.name for value in session.get_inputs()]
        self._check_names()
        self._mapped = sidecar.size - sidecar.files[plan.name].size
        self._multiples = prepared.multiples(sidecar)
        self._lock = threading.Lock()

    @property
    def mapped(self) -> int:
        return self._mapped

    def trim(self, room: int | None = None) -> bool:
        with self._lock:
            if self._original is not None:
                self._original.close()
                self._original = None
        mapping = self._opened()  # kept alive meanwhile
        freed = self._weights.free(room)
        del mapping
        return freed

    def source(self, feeds: Feeds) -> GraphSource:
        return self._prepared if self._takes(feeds) else self._unprepared().source(feeds)

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        found = dict(sizes)
        for spec in self.inputs:
            for dimension in spec.shape[2:] if spec.name in self._multiples else ():
                if dimension in found:
                    multiple = self._multiples[spec.name]
                    found[str(dimension)] = -(-found[str(dimension)] // multiple) * multiple
        return found

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        if not self._takes(feeds):
            return self._unprepared().run(feeds)
        if self._prepared.form == PREPARED:
            note_run(self.name, PREPARED)
        return super()._compute({name: feeds[name] for name in self._input_names})

    def _takes(self, feeds: Feeds) -> bool:
        return not any(
            size % multiple
            for name, multiple in self._multiples.items()
            for size in feeds[name].shape[2:]
        )

    def _check_names(self) -> None:
        """Raises: EngineError: the graph has other inputs or outputs than the sidecar."""
        known, needed = {spec.name for spec in self.inputs}, set(self._input_names)
        outputs = {value.name for value in self._session.get_outputs()}
        if not needed <= known or not set(self._output_names) <= outputs:
            raise EngineError(f"{self.name}: the prepared graph does not match its sidecar")

    def _unprepared(self) -> Session:
        with self._lock:
            self._check_open()
            if self._original is None:
                _log.info("%s: the prepared graph does not take this size", self.name)
                self._original = self._open_original()
            return self._original

    def _release(self) -> None:
        super()._release()
        with self._lock:
            if self._original is not None:
                self._original.close()


@cache
def _share_arena() -> None:
    """Let all prepared graphs of this process use one arena, which grows by the requested size."""
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
    except Exception as error:  # noqa: BLE001  there is one already, which serves as well
        _log.debug("no arena of our own: %s", one_line(error))
