"""Storing what ONNX Runtime optimises and OpenVINO compiles for the next process.

That takes longer than an image may wait. So the command line starts this module as a program when
its images are written, with the lowest priority.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sdexport.engines.cache import graph_cache
from sdexport.engines.cache.lock import locked
from sdexport.engines.errors import SDExportError
from sdexport.engines.messages import one_line
from sdexport.engines.ov import deferred_graphs
from sdexport.engines.ov.compiled_graph import Variant
from sdexport.engines.worker_process import module_command
from sdexport.runtime.packages.package import Package

_CACHED = "sdexport.engines.ort.prepared.cached_graph"
"""The module that knows what is missing, if ONNX Runtime was used."""
_GRAPH = "graph"
"""The name of a graph that OpenVINO compiles, among the options of its variant."""
_LOWEST = 19
"""Of the priorities of POSIX."""
_FIRST_KILLED = "1000"
"""The highest score of a process that Linux ends to get memory."""
_LOCK = "storing.lock"
"""In the cache folder: one process stores graphs at a time, of whatever package."""
_NOT_STORED = "%s: its graph is not stored for the next start: %s"
_log = logging.getLogger(__name__)


def defer(*packages: Package) -> None:
    """Let graphs of packages be compiled without being stored; `store_later` has to follow."""
    for package in packages if sys.platform == "linux" else ():
        deferred_graphs.defer(_paths(package))


def store_later(*packages: Package) -> None:
    """Store the graphs of packages that this process optimised or compiled, in one of its own.

    It goes on when this process ends. What goes wrong there is silent: the next process then does
    what this one did.
    """
    found = {str(package.folder.absolute()): _not_stored(package) for package in packages}
    graphs = {folder: each for folder, each in found.items() if each}
    if not graphs:
        return
    command, environment = module_command(__name__)
    nothing = subprocess.DEVNULL
    try:
        with tempfile.TemporaryFile() as graphs_file:  # LoRAs' inputs are too long for an argument
            graphs_file.write(json.dumps(graphs).encode())
            graphs_file.seek(0)
            subprocess.Popen(
                command,
                stdin=graphs_file,
                stdout=nothing,
                stderr=nothing,
                env=os.environ | environment,
                start_new_session=True,
            )
    except OSError as error:
        _log.info("graphs are not stored for the next start: %s", one_line(error))
    else:
        _log.debug("graphs are stored in the background, for the next start")


def _not_stored(package: Package) -> list[str]:
    """The graphs of a package that this process optimised or compiled, as `store` takes them."""
    paths, cached = _paths(package), sys.modules.get(_CACHED)
    graphs: list[str] = []
    if cached is not None:
        missing = cached.missing_graphs(paths)
        graphs += [graph for graph in missing if _has_room(graph, paths[graph], cached.shortage)]
    for graph, variant in deferred_graphs.deferred(paths):
        if _has_room(graph, paths[graph], deferred_graphs.shortage):
            graphs.append(json.dumps({_GRAPH: graph, **variant.options()}))
    return graphs


def _paths(package: Package) -> dict[str, Path]:
    """The ONNX files of a package by name of their graph."""
    return {graph: package.model_path(graph) for graph in package.graphs}


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

    Args:
      graphs: names, for ONNX Runtime; options of variants with their names, in JSON, for OpenVINO.
    Raises: see Package.load. EngineError: another process stores graphs.
    """
    place = graph_cache.folder(graph_cache.ONNXRUNTIME)
    if place is None:
        return
    with locked(place / _LOCK, "the cache"):
        package = Package.load(folder, verify_hashes=True)
        for each in graphs if package.hashes is not None else ():
            options = json.loads(each) if each.startswith("{") else None
            graph = each if options is None else options[_GRAPH]
            try:
                _store(package, graph, options)
            except (SDExportError, OSError, ValueError, MemoryError) as error:
                _log.info(_NOT_STORED, graph, one_line(error))


def _store(package: Package, graph: str, options: Mapping[str, Any] | None) -> None:
    """Store one graph. options: of a variant for OpenVINO; None for ONNX Runtime.

    Raises: see store_onnxruntime and deferred_graphs.store.
    """
    path = package.model_path(graph)
    checked: dict[str, Any] = {
        "digest": package.model_digest(graph),
        "files": package.model_files(graph),
        "check": partial(package.check_hashes, graph),
    }
    if options is not None:
        deferred_graphs.store(path, graph, Variant.from_options(options), **checked)
    else:
        from sdexport.engines.ort.cpu_session import store_onnxruntime

        store_onnxruntime(path, **checked)


def _step_back() -> None:
    """Give way to other processes, in time and when memory runs out."""
    if hasattr(os, "nice"):
        os.nice(_LOWEST)
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text(_FIRST_KILLED, encoding="ascii")


if __name__ == "__main__":
    _step_back()
    for name, graphs_of_it in json.load(sys.stdin).items():
        with suppress(SDExportError, OSError, MemoryError):
            store(Path(name), graphs_of_it)
