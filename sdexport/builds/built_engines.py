"""The engines that were built for a package, and whether each still fits it and this machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from sdexport.engines import PLAN_BACKENDS, PREPARED_BACKEND, EngineError, cuda_device
from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.ort.prepared import prepared_graph as prepared
from sdexport.engines.trt.library import library
from sdexport.engines.trt.plan import differences
from sdexport.runtime.packages.package import Package


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
    for backend in (*PLAN_BACKENDS, PREPARED_BACKEND):
        own = backend == PREPARED_BACKEND
        compare, not_compared = _prepared_here() if own else _here(backend)
        pattern = package.plan_path("*", backend, engine_dir)
        for plan in sorted(pattern.parent.glob(pattern.name)):
            if plan.stem.endswith(f".{prepared.BEFORE}"):
                continue
            entry: dict[str, Any] = {
                "component": plan.stem,
                "backend": backend,
                "plan": str(plan),
                "size": plan.stat().st_size,
                "refits": False,
            }
            try:
                sidecar = Sidecar.read(plan)
                entry |= _known(sidecar)
                if plan.stem in package.graphs:
                    wrong = compare(sidecar, package, plan.stem)
                else:
                    wrong = [f"the package has no {plan.stem}"]
                entry["refits"] = not wrong and _takes_weights(sidecar, package)
            except FileNotFoundError:
                wrong = [f"there is no {sidecar_path(plan).name}: it was not built to its end"]
            except EngineError as error:
                wrong = [str(error)]
            found.append(
                entry | {"fits": not wrong, "differences": wrong, "not_compared": not_compared}
            )
    return found


Compare = Callable[[Sidecar, Package, str], list[str]]
"""What keeps an engine from standing for a component of a package here."""


def _prepared_here() -> tuple[Compare, list[str]]:
    version: str | None = None
    for name in ("onnxruntime", "onnxruntime-gpu"):  # never both
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
    missing = [] if version else ["ONNX Runtime is not installed"]

    def compare(sidecar: Sidecar, package: Package, component: str) -> list[str]:
        digest = package.model_digest(component)
        return prepared.differences(sidecar, digest=digest, version=version)

    return compare, missing


def _here(backend: str) -> tuple[Compare, list[str]]:
    """How a plan is compared with this machine, and what there is none of here."""
    lib, version, gpu, missing = library(backend), None, None, []
    try:
        version = lib.version()
    except ImportError:
        missing.append(f"{lib.name} is not installed")
    try:
        gpu = cuda_device.gpu()
    except (EngineError, ImportError):
        missing.append("no NVIDIA GPU")

    def compare(sidecar: Sidecar, package: Package, component: str) -> list[str]:
        path, digest = package.model_path(component), package.model_digest(component)
        return differences(sidecar, path, backend, digest=digest, version=version, gpu=gpu)

    return compare, missing


def _takes_weights(sidecar: Sidecar, package: Package) -> bool:
    others = package.model_digest(sidecar.component) != sidecar.onnx_sha256
    return others or bool(sidecar.options.get("weight_stripped"))


def _known(sidecar: Sidecar) -> dict[str, Any]:
    return {
        "size": sidecar.size,
        "library_version": sidecar.library_version,
        "target": dict(sidecar.target),
        "profiles": [{n: str(span) for n, span in p.items()} for p in sidecar.profiles],
        "options": dict(sidecar.options),
    }
