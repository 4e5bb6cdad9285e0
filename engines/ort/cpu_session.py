"""ONNX Runtime on the CPU: a prepared graph where there is one, else the ONNX file itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.engines.ort.onnxruntime_session import OnnxRuntimeSession, maps_weights
from sdexport.engines.ort.prepared.cached_graph import CachedGraph
from sdexport.engines.ort.prepared.prepared_session import open_prepared
from sdexport.engines.ort.runtime_library import CPU, Provider
from sdexport.engines.session import Session

NEEDS_DEFAULTS = "prepared graphs run only with the default providers, optimization and prepacking"


def open_onnxruntime(
    path: str | Path,
    *,
    providers: str | Sequence[Provider] = CPU,
    threads: int | None = None,
    optimization: str = "all",
    prepacking: bool = True,
    plan: str | Path | None = None,
    digest: str | None = None,
    package: str | None = None,
    files: CheckedFiles = UNCHECKED,
    seldom: bool = False,
    check: Callable[[], object] | None = None,
) -> Session:
    """Open an ONNX graph in ONNX Runtime, or what was prepared from it or is cached of it.

    Both are used only with the default providers, optimization and prepacking.

    Args:
      path, providers, threads, optimization, prepacking, files: see OnnxRuntimeSession.
      seldom: see OnnxRuntimeSession; with other providers than the CPU, or if `prepacking` is off
        anyway, it has no effect.
      plan: where `sdexport build` writes the prepared graph; the file may be missing.
      digest, package: what that must have been built from; see staleness.Requirements.
      check: raises PackageError if the file or its weights were altered. With it and `digest`, the
        user's cache is used, see prepared.cached_graph; but not for large weights of a graph that
        runs seldom, which are used where they are.
    Raises: see OnnxRuntimeSession.
    """
    path = Path(path)
    providers = (providers,) if isinstance(providers, str) else tuple(providers)
    original = partial(
        OnnxRuntimeSession,
        path,
        providers=providers,
        threads=threads,
        optimization=optimization,
        prepacking=prepacking,
        files=files,
        seldom=seldom and providers == CPU and prepacking,
    )
    defaults = uses_prepared(
        {"providers": providers, "optimization": optimization, "prepacking": prepacking}
    )
    exists = plan is not None and os.path.lexists(plan)
    if plan is not None and exists and defaults:
        return open_prepared(
            Path(plan), original=original, digest=digest, package=package, threads=threads
        )
    is_known = check is not None and digest is not None and defaults
    if is_known and not (seldom and maps_weights(path)):
        assert check is not None and digest is not None
        return CachedGraph(path, _graph_of(path), digest, threads, original, check).open()
    return original(unused=NEEDS_DEFAULTS if exists else "")


def uses_prepared(options: Mapping[str, Any]) -> bool:
    """Whether a session with these options runs a prepared or cached graph if there is one."""
    defaults = {"providers": CPU, "optimization": "all", "prepacking": True}
    given = {name: options.get(name, value) for name, value in defaults.items()}
    if isinstance(given["providers"], str):
        given["providers"] = (given["providers"],)
    return given | {"providers": tuple(given["providers"])} == defaults


def is_cached(path: Path, digest: str, options: Mapping[str, Any]) -> bool:
    """Whether open_onnxruntime probably opens a graph of the user's cache, by its sidecar.

    Args:
      path, digest: see open_onnxruntime. options: of the session.
    """
    if not uses_prepared(options):
        return False
    original = partial(OnnxRuntimeSession, path)
    return CachedGraph(path, _graph_of(path), digest, None, original, lambda: None).is_stored()


def store_onnxruntime(
    path: Path, *, digest: str, files: CheckedFiles, check: Callable[[], object]
) -> None:
    """Store the optimised form of a graph in the user's cache, where open_onnxruntime finds it.

    Args:
      path, digest, files, check: see open_onnxruntime.
    Raises: see CachedGraph.store.
    """
    original = partial(OnnxRuntimeSession, path, files=files)
    CachedGraph(path, _graph_of(path), digest, None, original, check).store()


def _graph_of(path: Path) -> str:
    """The name of the component, or of the token graph, that is in a file of a package."""
    name = path.parent.name
    return name if path.stem == "model" else f"{name}.{path.stem}"
