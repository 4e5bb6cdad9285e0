"""The tasks of `benchmarks.gpu` in their order, with estimates: the most useful ones first.

Seconds are estimates for an H100 or H200 with 16 cores. Until a report of such a machine is in
benchmarks/results they are guesses: from the time of the exports on two cores, and published times.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

from benchmarks.gpu_names import COMPILED, ORT, ORT_GRAPH, TORCH, TORCH_GRAPH
from benchmarks.gpu_program import ENVIRONMENT, Task

CHECKS = (
    Task(ENVIRONMENT, 8, 60),
    Task("limits", 12, 60),
    Task("tests", 50, 100, background=True),
    Task("cuda", 10, 60),
    Task("noise", 15, 60),
)
PACKAGES = {"demo": (5, 60), "sd15": (100, 240), "sdxl": (190, 400)}
"""Seconds and limit of drawing the weights and exporting, with PyTorch on the CPU."""
_DEMO = {TORCH: 15, ORT: 12, ORT_GRAPH: 15, TORCH_GRAPH: 10, COMPILED: 25}
_SD15 = {TORCH: 45, ORT: 50, ORT_GRAPH: 75, TORCH_GRAPH: 35, COMPILED: 90}
_SDXL = {TORCH: 60, ORT_GRAPH: 110, TORCH_GRAPH: 45}
_FURTHER = {ORT: 80, COMPILED: 150}
"""Of SDXL, not in the default plan."""
_SIZES = {"demo": 20, "sd15": 90, "sdxl": 150}
_LIMIT = 2.0
"""A task is killed after this many times its estimate, and not before LEAST_LIMIT seconds."""
LEAST_LIMIT = 60.0
PLAN_LIBRARIES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


def tasks() -> list[Task]:
    """Every task, those of the default plan marked as standard.

    The packages of the large models are exported in the background, while the GPU is busy with
    the checks and the demo model.
    """
    found = [*CHECKS[:2], _package("sd15"), *CHECKS[2:], _package("demo")]
    found += _timed("demo", _DEMO, after=("tests",))
    found += _built("demo")
    found.append(_package("sdxl"))
    found += _timed("sd15", _SD15)
    found += _timed("sdxl", _SDXL)
    found += _timed("sdxl", _FURTHER, standard=False)
    for name in _SIZES:
        needs = (f"{name}.package", f"{name}.{TORCH}")
        found.append(Task(f"{name}.sizes", _SIZES[name], 300, needs, standard=False))
    return [*found, *_built("sd15", standard=False)]


def _package(model: str) -> Task:
    seconds, limit = PACKAGES[model]
    return Task(f"{model}.package", seconds, limit, background=model != "demo")


def _timed(
    model: str, seconds: dict[str, int], *, after: tuple[str, ...] = (), standard: bool = True
) -> Iterator[Task]:
    """A task for each contender. Only PyTorch's needs no package, but is compared with nothing."""
    package, reference = f"{model}.package", f"{model}.{TORCH}"
    for contender, estimate in seconds.items():
        needs = (package,) if contender == TORCH else (package, reference)
        limit = max(_LIMIT * estimate, LEAST_LIMIT)
        name = f"{model}.{contender}"
        yield Task(name, estimate, limit, needs, after, standard=standard)


def _built(model: str, *, standard: bool = True) -> Iterator[Task]:
    """Engines that are built first; of the default plan where the library is installed.

    They are skipped on a GPU that the library does not support.
    """
    for backend, module in PLAN_LIBRARIES.items():
        there = module in sys.modules or importlib.util.find_spec(module) is not None
        needs = (ENVIRONMENT, f"{model}.package", f"{model}.{TORCH}")
        seconds = 30 if model == "demo" else 150
        name, wanted = f"{model}.{backend}", standard and there
        yield Task(name, seconds, 3 * seconds, needs, standard=wanted, library=backend)
