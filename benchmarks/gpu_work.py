"""What the tasks of `benchmarks.gpu` do, each in a process of its own; see gpu_plan.py.

Results of earlier tasks are read from files: the package, PyTorch's outputs in float32, its images.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu_names import CONTENDERS, PLANS
from benchmarks.gpu_process import reported, result_path
from benchmarks.gpu_worker import Report, failure
from sdexport.engines.errors import EngineError, InvalidArgumentError, MissingDependencyError

LIBRARIES = ("torch", "diffusers", "transformers", "onnxruntime")
PACKAGES = (
    *("cuda-bindings", "diffusers", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
    *("onnxscript", "tensorrt", "tensorrt-rtx", "torch", "transformers", "triton"),
)
ROOT = Path(__file__).parents[1]
GPU_TESTS = ("tests/gpu", "tests/engines/test_session_contract.py")
Settings = Mapping[str, Any]


def run(name: str, settings: Settings, report: Report) -> None:
    """Run a task.

    Args:
      settings: device, work (a folder), results (a folder with those of other tasks), repeats and
        seconds of a row.
    Raises: InvalidArgumentError: no such task.
    """
    checks: dict[str, Callable[[Settings, Report], None]] = {
        "environment": _environment,
        "limits": _limits,
        "tests": _tests,
        "cuda": _cuda,
        "noise": _noise,
    }
    if name in checks:
        checks[name](settings, report)
        return
    from benchmarks import gpu_measure

    model, _, what = name.partition(".")
    if what == "package":
        gpu_measure.write(model, settings, report)
    elif what == "sizes":
        gpu_measure.sizes(model, settings, report)
    elif what in PLANS:
        gpu_measure.build_and_measure(model, what, settings, report)
    elif what in CONTENDERS:
        gpu_measure.contender(model, what, settings, report)
    else:
        raise InvalidArgumentError(f"no task is named {name!r}")


def earlier(settings: Settings, name: str) -> dict[str, Any]:
    """The result of another task, empty if it has none."""
    return reported(result_path(Path(settings["results"]), name))


def tried(stage: Callable[[], Any]) -> Any:
    """The result of a stage, or its error as text; the stages after it go on."""
    try:
        return stage()
    except Exception as error:  # noqa: BLE001  the report includes errors
        return failure(error)


def _environment(settings: Settings, report: Report) -> None:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    report({"python": platform.python_version(), "versions": versions, "cores": os.cpu_count()})
    from sdexport.engines import cuda_device
    from sdexport.engines.telemetry import import_onnxruntime

    report({"gpu": tried(lambda: vars(cuda_device.gpu()))})
    report({"cannot_run": tried(_cannot_run)})
    report({"driver": tried(lambda: cuda_device.call(cuda_device.runtime().cudaDriverGetVersion))})
    report({"providers": tried(lambda: import_onnxruntime().get_available_providers())})
    report({"torch": tried(_torch_device)})


def _cannot_run() -> dict[str, str]:
    """Why a library of plans that is installed cannot run on this GPU, by backend."""
    from sdexport.engines import cuda_device
    from sdexport.engines.trt.library import library
    from sdexport.engines.trt.supported_gpus import gpu_problem

    found: dict[str, str] = {}
    for backend in PLANS:
        with suppress(EngineError, MissingDependencyError):  # no GPU, or not installed
            if problem := gpu_problem(library(backend), cuda_device.gpu()):
                found[backend] = problem
    return found


def _torch_device() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"cuda": torch.version.cuda, "available": torch.cuda.is_available()}
    if found["available"]:
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "memory": properties.total_memory}
        found |= {"multiprocessors": properties.multi_processor_count}
        found |= {"cudnn": torch.backends.cudnn.version()}
    return found


def _limits(settings: Settings, report: Report) -> None:
    from benchmarks.gpu_timing import limits

    report(limits(settings["device"]))


def _cuda(settings: Settings, report: Report) -> None:
    from benchmarks.gpu_checks import check_cuda
    from sdexport.engines import cuda_device

    absent = cuda_device.absent()
    if absent and settings["device"] != "cuda":
        report({"absent": absent})
        return
    report(check_cuda())


def _noise(settings: Settings, report: Report) -> None:
    from benchmarks.gpu_checks import check_noise

    report(check_noise(settings["device"]))


def _tests(settings: Settings, report: Report) -> None:
    """The tests marked `gpu`; in a dry run they are only collected."""
    xml = Path(settings["work"]) / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *GPU_TESTS]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command += [f"--junitxml={xml.resolve()}", "-o", "addopts="]
    if settings["device"] != "cuda":
        command.append("--collect-only")
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    printed = done.stdout.decode(errors="replace").splitlines()
    print("\n".join(printed[-60:]), flush=True)
    report({"status": done.returncode, "pytest_s": time.perf_counter() - started})
    report({"summary": printed[-1] if printed else "", **tried(lambda: _outcomes(xml))})
    if done.returncode:
        report({"error": f"pytest ended with status {done.returncode}"})


def _outcomes(xml: Path) -> dict[str, Any]:
    """Counts, and the names and messages of tests that failed or were skipped."""
    found: dict[str, Any] = {"tests": 0, "failed": {}, "skipped": {}}
    for case in ElementTree.parse(xml).iter("testcase"):  # written by our own pytest
        found["tests"] += 1
        name = f"{case.get('classname')}::{case.get('name')}"
        for kind, key in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            for entry in case.iter(kind):
                found[key][name] = str(entry.get("message"))[:300]
    return found
