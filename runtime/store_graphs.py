"""Storing the graphs that ONNX Runtime optimises for the next process; as a program, the worker.

That takes longer than an image may wait. So the command line starts this program when its images
are written, with the lowest priority.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from sdexport.engines.cache import graph_cache
from sdexport.engines.cache.lock import locked
from sdexport.engines.errors import SDExportError
from sdexport.engines.messages import one_line
from sdexport.engines.worker_process import module_command
from sdexport.runtime.packages.package import Package

_CACHED = "sdexport.engines.ort.prepared.cached_graph"
"""The module that knows what is missing, if ONNX Runtime was used."""
_LOWEST = 19
"""Of the priorities of POSIX."""
_FIRST_KILLED = "1000"
"""The highest score of a process that Linux ends to get memory."""
_LOCK = "storing.lock"
"""In the cache folder: one process stores graphs at a time, of whatever package."""
_NOT_STORED = "%s: its optimised graph is not stored: %s"
_log = logging.getLogger(__name__)


def store_later(package: Package) -> None:
    """Store the graphs of a package that this process had to optimise, in a process of its own.

    It goes on when this process ends. What goes wrong there is silent: the next process then does
    what this one did.
    """
    cached = sys.modules.get(_CACHED)
    if cached is None:
        return
    paths = {graph: package.model_path(graph) for graph in package.graphs}
    missing = cached.missing_graphs(paths)
    graphs = [graph for graph in missing if _has_room(graph, paths[graph], cached.shortage)]
    if not graphs:
        return
    command, environment = module_command(__name__)
    nothing = subprocess.DEVNULL
    try:
        subprocess.Popen(
            [*command, str(package.folder.absolute()), *graphs],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            env=os.environ | environment,
            start_new_session=True,
        )
    except OSError as error:
        _log.info("optimised graphs are not stored: %s", one_line(error))
    else:
        _log.debug("optimised graphs are stored in the background, for the next start")


def _has_room(graph: str, path: Path, shortage: Callable[[Path], str]) -> bool:
    try:
        problem = shortage(path)
    except (SDExportError, OSError, ValueError) as error:
        problem = one_line(error)
    if problem:
        _log.info(_NOT_STORED, graph, problem)
    return not problem


def store(folder: Path, graphs: Sequence[str]) -> None:
    """Store graphs of a package, one after the other; one that cannot be stored is left out.

    Raises: see Package.load. EngineError: another process stores graphs.
    """
    from sdexport.engines.ort.cpu_session import store_onnxruntime

    place = graph_cache.folder(graph_cache.ONNXRUNTIME)
    if place is None:
        return
    with locked(place / _LOCK, "the cache"):
        package = Package.load(folder, verify_hashes=True)
        for graph in graphs if package.hashes is not None else ():
            try:
                store_onnxruntime(
                    package.model_path(graph),
                    digest=package.model_digest(graph),
                    files=package.model_files(graph),
                    check=partial(package.check_hashes, graph),
                )
            except (SDExportError, OSError, ValueError, MemoryError) as error:
                _log.info(_NOT_STORED, graph, one_line(error))


def _step_back() -> None:
    """Give way to other processes, in time and when memory runs out."""
    if hasattr(os, "nice"):
        os.nice(_LOWEST)
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text(_FIRST_KILLED, encoding="ascii")


if __name__ == "__main__":
    _step_back()
    with suppress(SDExportError, OSError, MemoryError):
        store(Path(sys.argv[1]), sys.argv[2:])
