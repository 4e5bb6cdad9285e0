"""The engines that were built for a package, and whether each still fits it and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines import PLAN_BACKENDS, EngineError, cuda
from engines.sidecar import Sidecar, sidecar_path
from engines.tensorrt_library import library
from engines.tensorrt_plan import differences
from runtime import Package


def built_engines(package: Package, engine_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """What is in the folder of engines, for people and for JSON.

    Each entry: component, backend, plan, size (bytes), fits, differences (why it does not fit),
    not_compared (what could not be, and why), refits (whether the package's weights are put in
    when it is opened); and where the sidecar can be read library_version, target, profiles,
    options.

    Raises: FileNotFoundError: engine_dir is no folder.
    """
    if engine_dir is not None and not Path(engine_dir).is_dir():
        raise FileNotFoundError(f"no folder of engines at {engine_dir}")
    found = []
    for backend in PLAN_BACKENDS:
        version, gpu, not_compared = _here(backend)
        folder = package.plan_path("any", backend, engine_dir).parent
        for plan in sorted(folder.glob("*.plan")):
            entry: dict[str, Any] = {
                "component": plan.stem,
                "backend": backend,
                "plan": str(plan),
                "size": plan.stat().st_size,
            }
            try:
                sidecar = Sidecar.read(plan)
                entry |= _known(sidecar)
                wrong = _differences(sidecar, package, plan.stem, backend, version, gpu)
            except FileNotFoundError:
                wrong = [f"there is no {sidecar_path(plan).name}: it was not built to its end"]
            except EngineError as error:
                wrong = [str(error)]
            entry["refits"] = not wrong and _takes_weights(sidecar, package)
            found.append(
                entry | {"fits": not wrong, "differences": wrong, "not_compared": not_compared}
            )
    return found


def _here(backend: str) -> tuple[str | None, cuda.Gpu | None, list[str]]:
    """The library's version and the GPU of this machine; in words what there is none of."""
    lib, version, missing = library(backend), None, []
    try:
        version = lib.version()
    except ImportError:
        missing.append(f"{lib.name} is not installed")
    try:
        return version, cuda.gpu(), missing
    except (EngineError, ImportError):
        return version, None, [*missing, "no NVIDIA GPU"]


def _differences(
    sidecar: Sidecar,
    package: Package,
    component: str,
    backend: str,
    version: str | None,
    gpu: cuda.Gpu | None,
) -> list[str]:
    if component not in package.graphs:
        return [f"the package has no {component}"]
    return differences(
        sidecar,
        package.model_path(component),
        backend,
        digest=package.model_digest(component),
        version=version,
        gpu=gpu,
    )


def _takes_weights(sidecar: Sidecar, package: Package) -> bool:
    others = package.model_digest(sidecar.component) != sidecar.onnx_sha256
    return others or bool(sidecar.options.get("weight_stripped"))


def _known(sidecar: Sidecar) -> dict[str, Any]:
    return {
        "library_version": sidecar.library_version,
        "target": dict(sidecar.target),
        "profiles": [{n: str(span) for n, span in p.items()} for p in sidecar.profiles],
        "options": dict(sidecar.options),
    }
