"""Graphs that this process compiles and leaves to a later one to store.

To store a graph takes half as long as to compile it, and an image would wait for it. So the command
line compiles only, and a process of its own compiles again and stores the result
(runtime/store_graphs.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from sdexport.engines.available_memory import available_bytes
from sdexport.engines.cache import graph_cache
from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import CheckedFiles, open_guarded
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.ov.compiled_graph import Variant, installed_version

MEMORY_SHARE = 1.5
"""A graph is stored if so many times the bytes of its weights are available in memory: compiling it
takes 0.9 times its weights in float32, or 1.5 of weights in float16."""
_deferred: dict[Path, list[Variant]] = {}


def defer(paths: Mapping[str, Path]) -> None:
    """Let sessions of these ONNX files, by name of their graph, store nothing; see `deferred`."""
    for path in paths.values():
        _deferred.setdefault(path, [])


def is_deferred(path: Path, variant: Variant) -> bool:
    """Whether another process stores a variant that is compiled now, which is noted then.

    Not if it is compiled again, as with low memory for each image: then this process stores it.
    """
    noted = _deferred.get(path)
    if noted is None or variant.shapes is None:
        return False
    if variant in noted:
        noted.remove(variant)
        return False
    noted.append(variant)
    return True


def deferred(paths: Mapping[str, Path]) -> list[tuple[str, Variant]]:
    """The variants that this process has compiled and not stored, with the names of their graphs.

    Args:
      paths: the ONNX files to look for, by name of their graph.
    """
    return [
        (graph, variant) for graph, path in paths.items() for variant in _deferred.get(path, ())
    ]


def weights_bytes(path: Path) -> int:
    """Bytes of an ONNX file and of the files of its weights.

    Raises: see survey; OSError: one is missing.
    """
    names = survey(path).locations
    return sum(file.stat().st_size for file in (path, *map(path.with_name, names)))


def shortage(path: Path) -> str:
    """Why a compiled graph of an ONNX file is not stored at the moment; "" if it can be.

    Raises: see weights_bytes; OSError: the disk does not say how much is free.
    """
    folder = graph_cache.folder(graph_cache.OPENVINO)
    if folder is None:
        return "there is no cache folder"
    weights = weights_bytes(path)
    if problem := graph_cache.no_room(folder, weights):
        return problem
    available, need = available_bytes(), MEMORY_SHARE * weights
    if available is not None and available < need:
        return f"{available / 1e9:.1f} GB of memory are available, of {need / 1e9:.1f}"
    return ""


def store(
    path: Path,
    graph: str,
    variant: Variant,
    *,
    digest: str,
    files: CheckedFiles,
    check: Callable[[], object],
) -> None:
    """Compile a graph and store it in the user's cache, if there is none that fits.

    Args:
      path, digest, files, check: see OpenVinoSession. graph: the name of its component or graph.
    Raises: EngineError: there is no room, another process stores it, or OpenVINO cannot compile it.
      What `check` raises. ValueError, OSError: see `shortage`.
    """
    from sdexport.engines.ov.graph_store import GraphStore
    from sdexport.engines.ov.openvino_session import OpenVinoSession

    folder, problem = graph_cache.folder(graph_cache.OPENVINO), shortage(path)
    if folder is None or problem:
        raise EngineError(problem)
    inputs, outputs = graph_specs(path)

    def compile_into(model: Path, once: Path) -> None:
        with OpenVinoSession(
            path, precision=variant.precision, rewrite=variant.rewrite, files=files, cached=False
        ) as session:
            session.compile_into(
                *(model, once, variant.shapes or {}),
                constants=variant.constants,
                shared=variant.shared,
            )
        check()

    found = GraphStore(
        graph, digest, installed_version(), inputs, outputs, prepared=None, package=None
    )
    built = found.write(folder, variant, compile_into)
    for name in built.sidecar.files:
        _flush(folder / name)
    graph_cache.evict(folder, keep=built.plan)


def _flush(path: Path) -> None:
    """Write a file to the disk: a process that opens it would wait for that, see present_state."""
    with open_guarded(path, error=EngineError, folder=path.parent) as file, suppress(OSError):
        os.fsync(file.fileno())
