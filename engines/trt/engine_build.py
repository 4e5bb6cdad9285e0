"""Build a TensorRT or TensorRT-RTX engine (a plan) from an ONNX file, through Polygraphy.

cache.engine_store writes the plan and its sidecar, and keeps a plan that is up to date.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdexport.engines import cuda_device
from sdexport.engines.cache.engine_store import Built, build_once
from sdexport.engines.cache.profiles import Profile, check_profiles, input_shapes
from sdexport.engines.cache.sidecar import Sidecar, model_digest
from sdexport.engines.errors import EngineError, MissingDependencyError, WorkerError
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.trt.build_options import BuildOptions, check_options, target
from sdexport.engines.trt.library import Library, library, polygraphy_version
from sdexport.engines.trt.plan import target_problems
from sdexport.engines.worker_process import run_in_worker

_log = logging.getLogger(__name__)
Progress = Callable[[str, float], object]
"""Called with the builder's phase and the completed share of the whole, 0..1."""


def build_plan(
    onnx: str | Path,
    plan: str | Path,
    *,
    backend: str,
    profiles: Sequence[Profile],
    options: BuildOptions | None = None,
    digest: str | None = None,
    package: str = "",
    timing_cache: str | Path | None = None,
    rebuild_stale: bool = False,
    progress: Progress = lambda phase, share: None,
) -> Built:
    """Build an engine, unless the present one is up to date.

    An interrupted build leaves no files.

    Args:
      onnx: the .onnx file. plan: the .plan to write; its sidecar has the same name and .json.
      backend: tensorrt or tensorrt-rtx.
      profiles: sizes of every dynamic dimension; with several, sessions use the narrowest that
        fits.
      digest: sdexport.engines.cache.sidecar.model_digest of `onnx`, if it is known already.
      package: Sidecar.package_sha256 of the package that `onnx` belongs to.
      timing_cache: TensorRT: file that keeps the builder's measurements for later builds.
      rebuild_stale: replace a plan that was built from or for something else.
    Raises: InvalidArgumentError: profiles or options that do not fit. FileNotFoundError: no such
      ONNX file. MissingDependencyError: the library or Polygraphy is not installed. EngineError:
      the build failed or needs a GPU that is not there, another process builds the same engine, or
      the present plan is stale.
    """
    onnx, plan = Path(onnx), Path(plan)
    if not onnx.is_file():
        raise FileNotFoundError(f"no model file {onnx}")
    lib = library(backend)
    options = options or BuildOptions()
    lib.load()
    check_options(plan.stem, lib, options, timing_cache)
    wanted = replace(
        _wanted(onnx, plan.stem, backend, options, profiles, digest),
        package_sha256=package,
    )
    _warn_if_not_for_this_gpu(lib, wanted)
    shapes = [{s.name: input_shapes(s, p) for s in wanted.inputs} for p in profiles]
    job = {
        "module": lib.module,
        "onnx": str(onnx),
        "profiles": shapes,
        "options": wanted.options,
        "timing_cache": str(timing_cache) if timing_cache else None,
    }

    def build(folder: Path) -> None:
        _run_worker({**job, "plan": str(folder / plan.name)}, wanted.component, lib, progress)

    return build_once(plan, wanted, build, rebuild_stale=rebuild_stale)


def _wanted(
    onnx: Path,
    component: str,
    backend: str,
    options: BuildOptions,
    profiles: Sequence[Profile],
    digest: str | None,
) -> Sidecar:
    """The sidecar of the plan to build, after checking that it can be built here."""
    lib = library(backend)
    version = lib.version()
    polygraphy_version()
    inputs, outputs = graph_specs(onnx)
    check_profiles(component, inputs, profiles)
    return Sidecar(
        component=component,
        backend=backend,
        library_version=version,
        onnx_sha256=digest or model_digest(onnx),
        graph_sha256=graph_digest(onnx),
        target=target(lib, options),
        profiles=tuple(dict(profile) for profile in profiles),
        options=options.key(),
        inputs=inputs,
        outputs=outputs,
    )


def _warn_if_not_for_this_gpu(lib: Library, wanted: Sidecar) -> None:
    """Log a warning if this machine has a GPU that cannot run the plan: it may be for others."""
    try:
        gpu = cuda_device.gpu()
    except (EngineError, MissingDependencyError):
        return
    if problems := target_problems(wanted.target, gpu, lib):
        _log.warning("%s: this machine cannot run it: %s", wanted.component, "; ".join(problems))


def _run_worker(job: Mapping[str, Any], component: str, lib: Library, progress: Progress) -> None:
    share = _Share()

    def follow(event: Mapping[str, Any]) -> None:
        if event["event"] == "warning":
            _log.info("%s: %s", component, event["message"])
        else:
            progress(event["name"], share.after(event))

    try:
        worker = "sdexport.engines.trt.build_worker"
        result = run_in_worker(worker, "build", {"job": job}, on_event=follow)
    except WorkerError as error:
        raise WorkerError(f"{component}: {lib.name} cannot build: {error}") from None
    if "failed" in result:
        what = "cannot read the graph" if result["failed"] == "parser" else "cannot build"
        raise EngineError(f"{component}: {lib.name} {what}: {result['message']}")
    progress("done", 1.0)


class _Share:
    """The completed share of nested phases: each has steps, and a step may have inner phases."""

    def __init__(self) -> None:
        self._phases: list[list[Any]] = []  # open ones, the outermost first: name, steps, completed
        self._largest = 0.0

    def after(self, event: Mapping[str, Any]) -> float:
        """The share after an event of the builder, 0..1; it never decreases."""
        name = event["name"]
        if event["event"] == "phase":
            self._phases.append([name, max(event["steps"], 1), 0])
        for phase in reversed(self._phases):
            if phase[0] == name:
                if event["event"] == "step":
                    phase[2] = min(event["step"] + 1, phase[1])
                elif event["event"] == "end":
                    self._phases.remove(phase)
                break
        share, size = 0.0, 1.0
        for _, steps, completed in self._phases:
            share += size * completed / steps
            size /= steps
        # phases of one name come repeatedly: the share must never decrease
        self._largest = max(self._largest, min(share, 1.0))
        return self._largest
