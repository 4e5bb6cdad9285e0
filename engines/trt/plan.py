"""Load a plan from disk into an engine: check it, refit it."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdexport.engines import cuda_device
from sdexport.engines.cache.engine_files import checked_files
from sdexport.engines.cache.profiles import check_profiles
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.cache.staleness import Requirements, Target, other_package, stale_reasons
from sdexport.engines.errors import EngineError, InvalidArgumentError
from sdexport.engines.guarded_files import open_guarded
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.trt.build_options import AMPERE_AND_LATER, PORTABLE
from sdexport.engines.trt.library import Library, library
from sdexport.engines.trt.library_calls import LibraryCalls
from sdexport.engines.trt.supported_gpus import gpu_problem
from sdexport.engines.trt.weight_streaming import set_weight_budget

_log = logging.getLogger(__name__)


def build_command(backend: str, component: str) -> str:
    """The command that builds a component's plan, for messages."""
    return f"sdexport build PACKAGE --backend {backend} --component {component}"


def read_sidecar(plan: Path, backend: str, component: str) -> Sidecar:
    """Read the sidecar of a plan.

    Raises: FileNotFoundError: there is none. EngineError: it is damaged. Both messages name the
      command that builds the plan.
    """
    command = build_command(backend, component)
    try:
        return Sidecar.read(plan)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{component}: {error}; build it: {command}") from None
    except EngineError as error:
        raise EngineError(
            f"{component}: {error}; build it again: {command} --rebuild-stale"
        ) from error


def requirements(
    onnx: Path,
    backend: str,
    *,
    digest: str | None,
    package: str | None,
    version: str | None,
    gpu: cuda_device.Gpu | None,
) -> Requirements:
    """What a plan must have been built from, with and for to run an ONNX file here.

    Args:
      digest, package: see Requirements.onnx_sha256 and package_sha256. version: of the library, if
        it is installed. None: not compared.
    """
    lib = library(backend)

    def problems(plan: Sidecar) -> list[str]:
        assert gpu is not None  # for the type checker
        return target_problems(plan.target, gpu, lib if version else None)

    return Requirements(
        backend=backend,
        library=lib.name,
        onnx_sha256=digest,
        package_sha256=package,
        graph_sha256=lambda: graph_digest(onnx),
        library_version=version,
        problems=None if gpu is None else problems,
    )


def check_fits(
    sidecar: Sidecar,
    onnx: Path,
    backend: str,
    gpu: cuda_device.Gpu,
    *,
    digest: str | None,
    package: str | None,
) -> None:
    """Raises: EngineError: the plan was built from, with or for something else; says what."""
    lib = library(backend)
    if problem := gpu_problem(lib, gpu):
        raise EngineError(f"{sidecar.component}: {problem}; use --backend onnxruntime-cuda")
    version = lib.version()
    required = requirements(onnx, backend, digest=digest, package=package, version=version, gpu=gpu)
    if other := other_package(sidecar, package):
        _log.info("%s: %s", sidecar.component, other)
    reasons = stale_reasons(sidecar, required)
    if reasons:
        command = build_command(backend, sidecar.component)
        raise EngineError(
            f"{sidecar.component}: this engine does not fit: {'; '.join(reasons)}; "
            f"build it again: {command} --rebuild-stale"
        )


def gpu_misfit(plan: Path, backend: str, gpu: cuda_device.Gpu) -> str:
    """Why a plan cannot run on a GPU, in words; "" if it can, or if its sidecar is damaged."""
    lib = library(backend)
    if problem := gpu_problem(lib, gpu):
        return problem
    try:
        sidecar = Sidecar.read(plan)
    except (EngineError, OSError):
        return ""  # opening the plan raises it
    return "; ".join(target_problems(sidecar.target, gpu, lib))


def target_problems(target: Target, gpu: cuda_device.Gpu, lib: Library | None) -> list[str]:
    """Why a plan for some GPUs does not run on this one.

    Args:
      lib: None if it is not installed: what it can run on is not compared then.
    """
    if lib is not None and (problem := gpu_problem(lib, gpu)):
        return [problem]
    present = gpu.compute_capability
    if "gpu" in target:
        built_on = (target["gpu"], target.get("compute_capability"))
        if built_on != (gpu.name, present):
            return [
                f"it was built on {built_on[0]} ({built_on[1]}), here is {gpu.name} ({present})"
            ]
        return []
    capabilities = target.get("compute_capabilities", "")
    if capabilities == PORTABLE and lib is not None and lib.portable:
        return []
    if capabilities in (PORTABLE, AMPERE_AND_LATER):
        if int(present.split(".")[0]) < 8:
            return [f"it is for {AMPERE_AND_LATER}, here is {present}"]
        return []
    if present not in capabilities.split(", "):
        return [f"it was built for compute capability {capabilities or 'none'}, here is {present}"]
    return []


def load_engine(
    trt: Any,
    plan: Path,
    onnx: Path,
    sidecar: Sidecar,
    digest: str | None,
    calls: LibraryCalls,
) -> tuple[Any, Any]:
    """Load the engine of a plan, with the weights of `onnx`.

    The weights are put in if the plan has none, or those of another file.
    Returns: the library's runtime, which must be kept as long as the engine, and the engine.
    Raises: EngineError: the plan was altered, or the library cannot load it; the message has the
      library's reason. PackageError: the plan was replaced meanwhile.
    """
    try:
        files = checked_files(plan, sidecar)
    except EngineError as error:
        command = build_command(sidecar.backend, sidecar.component)
        raise EngineError(
            f"{sidecar.component}: {error}; build it again: {command} --rebuild-stale"
        ) from error
    runtime = calls.value("does not start", trt.Runtime, calls.logger)
    with (
        files.unchanged(),
        open_guarded(plan, error=EngineError, folder=plan.parent) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        engine = calls.value(f"cannot load {plan}", runtime.deserialize_cuda_engine, data)
    other_weights = digest not in (None, sidecar.onnx_sha256)
    if other_weights or sidecar.options.get("weight_stripped"):
        refit(trt, engine, onnx, sidecar.component, calls)
    if sidecar.options.get("weight_streaming"):
        set_weight_budget(engine, calls)
    return runtime, engine


def refit(trt: Any, engine: Any, onnx: Path, component: str, calls: LibraryCalls) -> None:
    """Replace the weights of an engine by those of another ONNX file of the same graph.

    Raises: EngineError: the engine was not built for it, or the graphs differ.
    """
    if not engine.refittable:
        raise EngineError(f"{component}: the engine is not refittable; build it with --refittable")
    _log.info("%s: the weights come from %s", component, onnx)
    failure = f"does not refit the engine with {onnx}"
    refitter = calls.value(failure, trt.Refitter, engine, calls.logger)
    parser = calls.value(failure, trt.OnnxParserRefitter, refitter, calls.logger)
    calls.value(failure, parser.refit_from_file, str(onnx))
    calls.value(failure, refitter.refit_cuda_engine)


def check_names(
    trt: Any, engine: Any, sidecar: Sidecar, names: Sequence[str], calls: LibraryCalls
) -> None:
    """Raises: EngineError: engine, inputs, outputs and profiles do not belong together."""
    indices = range(engine.num_io_tensors)
    present = [calls.value("has no such tensor", engine.get_tensor_name, i) for i in indices]
    if sorted(present) != sorted(names):
        raise EngineError(
            f"{sidecar.component}: the engine has {', '.join(present)}, "
            f"its sidecar {', '.join(names)}"
        )
    try:
        check_profiles(sidecar.component, sidecar.inputs, sidecar.profiles)
    except InvalidArgumentError as error:
        raise EngineError(f"{error}; its sidecar is damaged") from error
    for spec in (*sidecar.inputs, *sidecar.outputs):
        own = calls.value(f"has no type of '{spec.name}'", engine.get_tensor_dtype, spec.name)
        dtype = calls.value(f"has '{spec.name}' in a type without NumPy's like", trt.nptype, own)
        if getattr(dtype, "__name__", str(dtype)) != spec.dtype:
            raise EngineError(
                f"{sidecar.component}: '{spec.name}' is {dtype} in the engine and {spec.dtype} in "
                "its sidecar"
            )
