"""The engines that were built for a package: intact or altered, and whether each still fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sdexport.engines import PLAN_BACKENDS, PREPARED_BACKEND, EngineError, cuda_device
from sdexport.engines.cache.engine_files import checked_files
from sdexport.engines.cache.sidecar import OLDER, Sidecar, sidecar_path
from sdexport.engines.cache.staleness import Requirements, other_package, stale_reasons
from sdexport.engines.errors import MissingDependencyError
from sdexport.engines.ort.prepared import prepared_graph as prepared
from sdexport.engines.ov import compiled_graph
from sdexport.engines.trt.library import library
from sdexport.engines.trt.plan import requirements
from sdexport.runtime.component_engines import check_own_folders, engine_path, package_binding
from sdexport.runtime.packages.package import Package

RequirementsFor = Callable[[str], Requirements]
"""By component of a package: what an engine must have been built from, with and for."""


FRESH, STALE, ALTERED, UNFINISHED = "fresh", "stale", "altered", "unfinished"
"""States of an engine: it is used; it was built from, for or by something else; its files are
damaged or not those that were built; it has no sidecar."""


def built_engines(
    package: Package,
    engine_dir: str | Path | None = None,
    *,
    on_bytes: Callable[[int], object] = lambda size: None,
) -> list[dict[str, Any]]:
    """Describe the engines in a folder, as JSON values; the files of those that fit are hashed.

    Args:
      on_bytes: called with the size of each file that was hashed, for a progress bar.
    Returns: for each engine component, backend, plan, size (bytes), state (FRESH, STALE, ALTERED or
      UNFINISHED), fits (whether it is FRESH), differences (why it is not), not_compared (what could
      not be compared, and why), refits (whether the package's weights are put in when it is opened)
      and other_package (in words, if it was built for another package); if its sidecar can be
      read, also library_version, target, profiles and options.
    Raises: FileNotFoundError: engine_dir is not a folder.
    """
    if engine_dir is not None and not Path(engine_dir).is_dir():
        raise FileNotFoundError(f"no folder of engines at {engine_dir}")
    entries = []
    for backend in (*PLAN_BACKENDS, PREPARED_BACKEND, compiled_graph.BACKEND):
        if backend == PREPARED_BACKEND:
            required, not_compared = _prepared_requirements(package)
        elif backend == compiled_graph.BACKEND:
            required, not_compared = _compiled_requirements(package)
        else:
            required, not_compared = _plan_requirements(package, backend)
        pattern = engine_path(package, "*", backend, engine_dir)
        for plan in sorted(pattern.parent.glob(pattern.name)):
            if plan.name.endswith(compiled_graph.ONCE_SUFFIX):
                continue  # a part of another one
            check = partial(check_own_folders, package, backend, engine_dir)
            entry = _entry(package, plan, backend, required, check, on_bytes)
            entries.append(entry | {"not_compared": not_compared})
    return entries


def _entry(
    package: Package,
    plan: Path,
    backend: str,
    required: RequirementsFor,
    check_folders: Callable[[], object],
    on_bytes: Callable[[int], object],
) -> dict[str, Any]:
    is_compiled = backend == compiled_graph.BACKEND
    component = compiled_graph.graph_of(plan) if is_compiled else plan.stem
    entry: dict[str, Any] = {
        "component": component,
        "backend": backend,
        "plan": str(plan),
        "size": plan.lstat().st_size,
        "refits": False,
        "other_package": "",
    }
    try:
        check_folders()
        sidecar = Sidecar.read(plan)
        entry |= _described(sidecar)
        if component in package.graphs:
            reasons = stale_reasons(sidecar, required(component))
        else:
            reasons = [f"the package has no {component}"]
        state = STALE if reasons else FRESH
        if not reasons:
            checked_files(plan, sidecar, on_bytes=on_bytes)
            entry["refits"] = _takes_weights(sidecar, package)
            entry["other_package"] = other_package(sidecar, package_binding(package))
    except FileNotFoundError:
        state = UNFINISHED
        reasons = [f"there is no {sidecar_path(plan).name}: the build did not finish"]
    except (EngineError, OSError) as error:
        state, reasons = STALE if OLDER in str(error) else ALTERED, [str(error)]
    return entry | {"state": state, "fits": state == FRESH, "differences": reasons}


def _prepared_requirements(package: Package) -> tuple[RequirementsFor, list[str]]:
    """How prepared graphs are compared, and what cannot be."""
    version = prepared.installed_version()

    def required(component: str) -> Requirements:
        digest, binding = package.model_digest(component), package_binding(package)
        return prepared.requirements(digest=digest, package=binding, version=version)

    return required, [] if version else ["ONNX Runtime is not installed"]


def _compiled_requirements(package: Package) -> tuple[RequirementsFor, list[str]]:
    """How graphs that OpenVINO compiled are compared, and what cannot be."""
    version = compiled_graph.installed_version() or None

    def required(component: str) -> Requirements:
        digest, binding = package.model_digest(component), package_binding(package)
        return compiled_graph.requirements(digest=digest, package=binding, version=version)

    return required, [] if version else ["OpenVINO is not installed"]


def _plan_requirements(package: Package, backend: str) -> tuple[RequirementsFor, list[str]]:
    """How plans are compared, and what cannot be."""
    lib, not_compared = library(backend), []
    version: str | None = None
    gpu: cuda_device.Gpu | None = None
    try:
        version = lib.version()
    except MissingDependencyError as error:
        not_compared.append(str(error).partition(";")[0])
    try:
        gpu = cuda_device.gpu()
    except (EngineError, MissingDependencyError):
        not_compared.append("no NVIDIA GPU")

    def required(component: str) -> Requirements:
        path, digest = package.model_path(component), package.model_digest(component)
        binding = package_binding(package)
        return requirements(path, backend, digest=digest, package=binding, version=version, gpu=gpu)

    return required, not_compared


def _takes_weights(sidecar: Sidecar, package: Package) -> bool:
    other_weights = package.model_digest(sidecar.component) != sidecar.onnx_sha256
    return other_weights or bool(sidecar.options.get("weight_stripped"))


def _described(sidecar: Sidecar) -> dict[str, Any]:
    return {
        "size": sidecar.size,
        "library_version": sidecar.library_version,
        "target": dict(sidecar.target),
        "profiles": [{n: str(span) for n, span in p.items()} for p in sidecar.profiles],
        "options": dict(sidecar.options),
    }
