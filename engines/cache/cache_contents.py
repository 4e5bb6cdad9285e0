"""What the user's cache folder holds, and deleting it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines.cache import graph_cache
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.cache.user_cache import folder_problem, user_cache_path
from sdexport.engines.errors import EngineError
from sdexport.engines.exit_actions import delete
from sdexport.engines.messages import one_line

HASHES, WEIGHTS = "hashes", "weights"
PARTS = (*graph_cache.FOLDERS, HASHES, WEIGHTS)
"""The folders within it, each of which holds one kind of thing. Weights are there while a graph of
ONNX Runtime opens, and after that only if the process was killed meanwhile."""


@dataclass(frozen=True)
class CacheContents:
    """The cache as JSON values.

    folder: None if caching is turned off. problem: why it is not used, "" if it is.
    size: bytes of all files in PARTS. limit: the most bytes of graphs.
    graphs: the last used one first.
    """

    folder: str | None
    problem: str
    size: int
    limit: int
    graphs: list[dict[str, Any]]


def contents() -> CacheContents:
    """What is in the user's cache folder."""
    root = user_cache_path()
    if root is None:
        return CacheContents(None, "", 0, graph_cache.limit(), [])
    problem = next((p for p in map(_problem, (root, *_parts(root))) if p), "")
    size = (
        0 if problem else sum(file.lstat().st_size for part in _parts(root) for file in _all(part))
    )
    found = [graph for part in _parts(root) for graph in _graphs(part)] if not problem else []
    graphs = [_described(g) for g in sorted(found, key=lambda g: g.used, reverse=True)]
    return CacheContents(str(root), problem, size, graph_cache.limit(), graphs)


def clear() -> int:
    """Delete what is in the cache; what another process writes meanwhile may stay.

    Returns: the bytes that were freed.
    Raises: EngineError: the folder is a link, or another user's.
    """
    root = user_cache_path()
    if root is None:
        return 0
    freed = 0
    for place in (root, *_parts(root)):
        if problem := _problem(place):
            raise EngineError(f"the cache is not cleared: {problem}")
    for part in _parts(root):
        before = sum(file.lstat().st_size for file in _all(part))
        for graph in _graphs(part):
            graph_cache.delete(graph)  # the sidecar first
        delete(part)
        freed += before - sum(file.lstat().st_size for file in _all(part))
    return freed


def _parts(root: Path) -> list[Path]:
    return [root / name for name in PARTS if os.path.lexists(root / name)]


def _graphs(part: Path) -> list[graph_cache.CachedGraph]:
    """The graphs of a folder; none in folders of something else."""
    return graph_cache.graphs(part) if part.name in graph_cache.FOLDERS else []


def _problem(folder: Path) -> str:
    return folder_problem(folder) if os.path.lexists(folder) else ""


def _all(folder: Path) -> list[Path]:
    """Every file in a folder; links are not followed."""
    found = []
    for place, _, names in os.walk(folder):
        found += [Path(place, name) for name in names]
    return [file for file in found if os.path.lexists(file)]


def _described(graph: graph_cache.CachedGraph) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "file": graph.plan.name,
        "size": graph.size,
        "used": graph.used,
        "problem": "",
    }
    try:
        sidecar = Sidecar.read(graph.plan)
    except (EngineError, OSError) as error:
        return entry | {"component": "", "problem": one_line(error)}
    with suppress(KeyError):
        entry["precision"] = sidecar.options["precision"]
    return entry | {
        "component": sidecar.component,
        "library": f"{sidecar.backend} {sidecar.library_version}",
        "profiles": [{n: str(s) for n, s in p.items()} for p in sidecar.profiles],
    }
