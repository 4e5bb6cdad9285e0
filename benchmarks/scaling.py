"""Growth of time and memory outside the engines with steps, batch, pixels and prompt length.

    python -m benchmarks.scaling --work DIR [--results DIR]

The demo model's pipeline runs with sessions that return at once, so only our own code is timed:
tokenizer, noise, scheduler, guidance, images. Nothing may grow faster than linearly: the exponent
of a power law through the larger sizes stays below LIMIT. The same sweeps are run with ONNX
Runtime, for the plots.
"""

from __future__ import annotations

import argparse
import math
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import arguments
from benchmarks.models import made
from sdexport import Package, Pipeline
from sdexport.bench.measure import machine, summary
from sdexport.engines import SessionBase
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.session import Feeds

LIMIT = 1.15
"""1 is linear; the rest allows for caches and timers in a fit through three sizes."""
SWEEPS: dict[str, tuple[int, ...]] = {
    "steps": (10, 20, 40, 80, 160),
    "batch": (2, 4, 8, 16, 32),
    "pixels": (128**2, 256**2, 512**2, 1024**2),
    "prompt words": (100, 200, 400, 800, 1600),
}
REPEATS = 5


class Instant(SessionBase):
    """A component that returns at once, always with the same values."""

    def __init__(self, package: Package, name: str) -> None:
        super().__init__(name, *graph_specs(package.model_path(name)))
        self._scale = package.manifest.downscale
        self._outputs: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        key = tuple(value.shape for value in feeds.values())
        if key not in self._outputs:
            self._outputs[key] = {
                spec.name: self._output(spec.shape, feeds) for spec in self.outputs
            }
        return {name: value.copy() for name, value in self._outputs[key].items()}

    def _output(self, shape: Sequence[int | str], feeds: Feeds) -> np.ndarray:
        sizes = {
            dim: size
            for spec in self.inputs
            for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        for side in ("height", "width"):
            if side in sizes:
                sizes.setdefault(f"image_{side}", sizes[side] * self._scale)
        dims = [size if isinstance(size, int) else sizes[size] for size in shape]
        return np.full(dims, 0.1, np.float32)


def instant(package: Package) -> Pipeline:
    """The package's pipeline with sessions that compute nothing."""
    names = package.manifest.components
    return Pipeline(package, sessions={name: Instant(package, name) for name in names})


def workload(sweep: str, value: int, i: int) -> dict[str, Any]:
    """The pipeline's arguments at one size of a sweep; long prompts differ in each call."""
    usual: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 4, "seed": 0}
    usual |= {"width": 64, "height": 64, "scheduler": "lms"}
    if sweep == "steps":
        return usual | {"num_inference_steps": value, "width": 256, "height": 256}
    if sweep == "batch":
        return usual | {"prompt": ["a red circle"] * value, "width": 256, "height": 256}
    if sweep == "pixels":
        return usual | {"width": math.isqrt(value), "height": math.isqrt(value)}
    words = " ".join(f"circle{i + number}" for number in range(value))
    return usual | {"prompt": words, "prompt_weights": True, "num_inference_steps": 1}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent of a power law through the three largest sizes; constants matter least there."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(values[-3:]), 1)[0])


def sweep(
    generate: Callable[..., Any],
    name: str,
    values: Sequence[int],
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, Any]:
    """Seconds and peak bytes of Python and NumPy at each size, and their exponents.

    Args:
      clock: by default the CPU time of this thread, which other processes do not affect.
    """
    samples: dict[int, list[float]] = {value: [] for value in values}
    for number in range(repeats + 1):  # in turn, so that all sizes see the same machine
        for value in values:
            arguments = workload(name, value, number)
            started = clock()
            generate(**arguments)
            if number:
                samples[value].append(clock() - started)
    peaks = []
    for value in values:
        arguments = workload(name, value, repeats + 1)
        tracemalloc.start()
        generate(**arguments)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    best = [min(samples[value]) for value in values]
    return {
        "sizes": list(values),
        "seconds": [summary(samples[value]) for value in values],
        "peak_bytes": peaks,
        "exponent": {"seconds": exponent(values, best), "bytes": exponent(values, peaks)},
    }


def run(package: Package, sweeps: Mapping[str, Sequence[int]] = SWEEPS) -> dict[str, Any]:
    with instant(package) as pipe:
        return {name: sweep(pipe, name, values) for name, values in sweeps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.scaling")
    arguments.common(parser)
    args = parser.parse_args()
    package = Package.load(made("embedded", args.work.resolve()).package, verify=False)
    report: dict[str, Any] = {"machine": machine(), "limit": LIMIT, "outside": run(package)}
    with Pipeline(package) as pipe:
        few = {name: values[:3] for name, values in SWEEPS.items()}
        report["onnxruntime"] = {
            name: sweep(pipe, name, few[name], 3, time.perf_counter) for name in few
        }
    arguments.save(report, "scaling", args)
    for name, found in report["outside"].items():
        growth = found["exponent"]
        print(f"{name:14} time ~ n^{growth['seconds']:.2f}, memory ~ n^{growth['bytes']:.2f}")
    worst = max(max(found["exponent"].values()) for found in report["outside"].values())
    if worst > LIMIT:
        raise SystemExit(f"something outside the engines grows faster than linearly: n^{worst:.2f}")


if __name__ == "__main__":
    main()
