"""Graphs that ONNX Runtime has optimised, in the user's cache: the next process maps them.

To open a graph, ONNX Runtime rewrites it and copies its weights into the layout of its kernels. The
result is stored with those copies, as `sdexport build` stores a prepared graph, but without any
rewrite of ours: the same nodes compute the same bits. To store it takes twice as long as to open it
does, so that only a block of `storing` does it.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from sdexport.engines.available_memory import available_bytes
from sdexport.engines.cache import graph_cache
from sdexport.engines.cache.engine_store import build_once
from sdexport.engines.cache.processor import kernel_target
from sdexport.engines.cache.processor_bound import requirements_here
from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.cache.staleness import Requirements, stale_reasons
from sdexport.engines.errors import EngineError, PackageError
from sdexport.engines.messages import one_line
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.ort.prepared.prepared_graph import BACKEND
from sdexport.engines.ort.prepared.prepared_session import opened
from sdexport.engines.ort.runtime_library import ort
from sdexport.engines.session import GraphSource, Session

VERSION = 1
"""Of what is stored; graphs of another one are replaced."""
_OPTION = "optimized"
_DIGITS = 12
MEMORY_SHARE = 4.0
"""A graph is stored if so many times its weights in float32 are available in memory: while they are
written there are three copies."""
_FLOAT = 4
_log = logging.getLogger(__name__)
_storing: ContextVar[bool] = ContextVar("storing", default=False)
_missing: dict[Path, str] = {}


@contextmanager
def storing() -> Iterator[None]:
    """Let graphs that are opened in this block, in this thread, be stored."""
    token = _storing.set(True)
    try:
        yield
    finally:
        _storing.reset(token)


def missing_graphs(folder: Path) -> list[str]:
    """The graphs of a package that this process has opened and that are not in the cache."""
    return sorted(graph for path, graph in _missing.items() if path.is_relative_to(folder))


@dataclass(frozen=True)
class CachedGraph:
    """The optimised form of one ONNX file.

    path: the ONNX file. graph: name of the component or token graph. digest: see
    sidecar.model_digest. threads: see OnnxRuntimeSession.
    original: opens the file itself; with `keep` it also writes the optimised form there.
    check: raises PackageError if the file or its weights were altered.
    """

    path: Path
    graph: str
    digest: str
    threads: int | None
    original: Callable[..., Session]
    check: Callable[[], object]

    def open(self) -> Session:
        """Open it; or the ONNX file, which a block of `storing` also stores if there is room.

        Raises: see OnnxRuntimeSession; what `check` raises.
        """
        folder = graph_cache.folder(graph_cache.ONNXRUNTIME) if sys.platform == "linux" else None
        if folder is None:
            return self.original()
        plan = folder / f"{self.digest[:_DIGITS]}.{self.graph}.{_OPTION}.onnx"
        if sidecar_path(plan).is_file():
            try:
                return self._opened(plan)
            except (EngineError, PackageError, OSError) as error:
                _log.warning(
                    "%s: its cached graph is not used: %s; it is made again",
                    *(self.graph, one_line(error)),
                )
        if _storing.get():
            return self._stored(plan)
        _missing[self.path] = self.graph
        return self.original()

    def _opened(self, plan: Path) -> Session:
        """Raises: EngineError, PackageError, OSError: it cannot be used."""
        sidecar = Sidecar.read(plan)
        if reasons := stale_reasons(sidecar, self._required()):
            raise EngineError("; ".join(reasons))
        source = GraphSource(self.path)  # what it is, but for the time to open it
        session = opened(plan, sidecar, self.original, self.threads, source=source)
        graph_cache.note_use(plan)
        return session

    def _stored(self, plan: Path) -> Session:
        """Open the ONNX file, and store its optimised form."""
        made: list[Session] = []

        def build(part: Path) -> None:
            made.append(self.original(keep=part / plan.name))
            self.check()

        try:
            weights = _float32_bytes(self.path)
            problem = graph_cache.no_room(plan.parent, weights)
            if not problem and _is_memory_short(weights):
                _log.info("%s: its optimised graph is not cached: little memory", self.graph)
                return self.original()
            if not problem:
                build_once(plan, self._wanted(), build, rebuild_stale=True)
                graph_cache.evict(plan.parent, keep=plan)
        except (EngineError, OSError) as error:
            problem = one_line(error).partition(";")[0]
        except BaseException:
            for session in made:
                session.close()
            raise
        if problem:
            _log.warning("%s: its optimised graph is not cached: %s", self.graph, problem)
        return made[0] if made else self.original()

    def _required(self) -> Requirements:
        return requirements_here(
            BACKEND,
            "ONNX Runtime",
            rewrites=(_OPTION, VERSION),
            digest=self.digest,
            package=None,
            version=ort.__version__,
        )

    def _wanted(self) -> Sidecar:
        inputs, outputs = graph_specs(self.path)
        return Sidecar(
            component=self.graph,
            backend=BACKEND,
            library_version=ort.__version__,
            onnx_sha256=self.digest,
            graph_sha256="",
            target=kernel_target(),
            profiles=(),
            options={_OPTION: VERSION},
            inputs=tuple(inputs),
            outputs=tuple(outputs),
        )


def _float32_bytes(path: Path) -> int:
    """Bytes of an ONNX file and of its weights in float32."""
    external = sum(_FLOAT * math.prod(each.dims) for each in survey(path).external)
    return path.stat().st_size + external


def _is_memory_short(weights: int) -> bool:
    available = available_bytes()
    return available is not None and available < MEMORY_SHARE * weights
