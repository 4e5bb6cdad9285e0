"""Graphs that ONNX Runtime has optimised, in the user's cache: the next process maps them.

To open a graph, ONNX Runtime rewrites it and copies its weights into the layout of its kernels. The
result is stored with those copies, as `sdexport build` stores a prepared graph, but as a session of
the ONNX file runs it: the same nodes compute the same bits. To store it takes twice as long as to
open it does, so that a process of its own does it (runtime/store_graphs.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdexport.engines.available_memory import available_bytes
from sdexport.engines.cache import graph_cache
from sdexport.engines.cache.engine_store import build_once
from sdexport.engines.cache.processor import kernel_target
from sdexport.engines.cache.processor_bound import requirements_here
from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.cache.staleness import Requirements, fitting_sidecar, stale_reasons
from sdexport.engines.errors import EngineError, PackageError
from sdexport.engines.messages import one_line
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.ort.prepared.prepared_graph import BACKEND, is_aligned
from sdexport.engines.ort.prepared.prepared_session import opened
from sdexport.engines.ort.runtime_library import ort
from sdexport.engines.ort.widened_weights import widens
from sdexport.engines.session import GraphSource, Session

VERSION = 3
"""Of what is stored; graphs of another one are not used."""
_OPTION = "optimized"
_DIGITS, _KEY_DIGITS = 12, 8
MEMORY_SHARE = 5.0
"""A graph is stored if so many times its weights in float32 are available in memory: while they are
written there are three copies, and a command that starts meanwhile needs memory as well."""
_FLOAT = 4
_log = logging.getLogger(__name__)
_missing: dict[Path, str] = {}


def missing_graphs(paths: Mapping[str, Path]) -> list[str]:
    """The graphs that this process has opened and that are not in the cache.

    Args:
      paths: the ONNX files to look for, by the name of their component or token graph.
    """
    return [graph for graph, path in paths.items() if _missing.get(path) == graph]


def shortage(path: Path) -> str:
    """Why the optimised form of an ONNX file is not stored at the moment; "" if it can be.

    Raises: see survey; OSError: the disk does not say how much is free.
    """
    folder = _folder()
    if folder is None:
        return "there is no cache folder"
    weights = _float32_bytes(path)
    converted = weights if widens(path) is not None else 0
    if problem := graph_cache.no_room(folder, weights, meanwhile=converted):
        return problem
    available, need = available_bytes(), MEMORY_SHARE * weights
    if available is not None and available < need:
        return f"{available / 1e9:.1f} GB of memory are available, of {need / 1e9:.1f}"
    return ""


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
        """Open it if it is in the cache, else the ONNX file; see missing_graphs.

        Raises: see OnnxRuntimeSession; what `check` raises.
        """
        folder = _folder()
        if folder is None:
            return self.original()
        plan = self._plan(folder)
        if sidecar_path(plan).is_file():
            try:
                session = self._opened(plan)
            except (EngineError, PackageError, OSError) as error:
                _log.warning("%s: its cached graph is not used: %s", self.graph, one_line(error))
            else:
                return session if session is not None else self.original()
        _missing[self.path] = self.graph
        return self.original()

    def is_stored(self) -> bool:
        """Whether `open` probably opens what is stored, by its sidecar."""
        folder = _folder()
        if folder is None:
            return False
        found = fitting_sidecar(self._plan(folder), self._required())
        return found is not None and found.size > 0

    def _opened(self, plan: Path) -> Session | None:
        """The stored graph; None if it is one that must not be stored, see `store`.

        Raises: EngineError, PackageError, OSError: it cannot be used.
        """
        sidecar = Sidecar.read(plan)
        if reasons := stale_reasons(sidecar, self._required()):
            raise EngineError("; ".join(reasons))
        if not sidecar.size:
            return None
        source = GraphSource(self.path)  # what it is, but for the time to open it
        session = opened(plan, sidecar, self.original, self.threads, source=source)
        graph_cache.note_use(plan)
        return session

    def store(self) -> None:
        """Store it, if there is none that fits.

        If ONNX Runtime stores copies of weights where its kernels cannot read them, an empty file
        is stored: the graph is then not tried again.
        Raises: EngineError: there is no room, another process stores it, or the ONNX file cannot be
          opened. What `check` raises. ValueError, OSError: see `shortage`.
        """

        def build(part: Path) -> None:
            target = part / plan.name
            self.original(keep=target).close()
            self.check()
            if not is_aligned(target):
                for file in list(part.iterdir()):
                    file.unlink()
                target.touch()

        folder, problem = _folder(), shortage(self.path)
        if folder is None or problem:
            raise EngineError(problem)
        plan = self._plan(folder)
        build_once(plan, self._wanted(), build, rebuild_stale=True)
        graph_cache.evict(folder, keep=plan)

    def _plan(self, folder: Path) -> Path:
        """Its file; other versions and kinds of processors that share the folder have others."""
        bound_to = json.dumps([ort.__version__, kernel_target(), VERSION], sort_keys=True)
        key = hashlib.sha256(bound_to.encode()).hexdigest()[:_KEY_DIGITS]
        return folder / f"{self.digest[:_DIGITS]}.{self.graph}.{key}.{_OPTION}.onnx"

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


def _folder() -> Path | None:
    return graph_cache.folder(graph_cache.ONNXRUNTIME) if sys.platform == "linux" else None
