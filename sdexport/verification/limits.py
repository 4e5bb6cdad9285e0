"""The limits of verification: one table, with the reason of each number.

A limit is what the export measured on this package times FACTOR, but never below the floor nor
above the ceiling of the arithmetic that runs. The manifest is untrusted: a forged one can widen a
limit up to the ceiling and no further. Where the export measured nothing, as for another arithmetic
than the package's own, the ceiling is the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdexport.engines.webgpu.webgpu_library import computes_float16
from sdexport.runtime.component_backends import Backends, backend_of
from sdexport.runtime.component_engines import resolve_backend
from sdexport.runtime.packages.manifest import Manifest
from sdexport.runtime.packages.package import Package

FACTOR = 4.0
"""Another backend, processor, number of threads or optimisation sums in another order and rounds at
other places than the export's run. Measured: up to 2.7 times its error (OpenVINO, float32, UNet of
the demo model)."""


@dataclass(frozen=True)
class Range:
    """Floor and ceiling of each measure of one arithmetic."""

    relative_l2: tuple[float, float]
    max_abs: tuple[float, float]
    image_max: tuple[float, float]
    image_rms: tuple[float, float]


RANGES: Mapping[str, Range] = {
    # Sums of a few thousand float32 products in another order. Measured at most: L2 8.9e-7 and max
    # 2.3e-6 in the demo model; L2 6.6e-6 and max 8.4e-6 in SD 1.5's VAE decoder, and 8.4e-6 and
    # 1.4e-5 with OpenVINO's rewrites; max 1.2e-5 in SDXL's. Rounding a pixel to 8 bits may go to
    # either side of a half, never further, and seldom: 0.3 is one value in eleven.
    "fp32": Range((3e-6, 5e-5), (2e-5, 5e-5), (1, 1), (0.3, 0.3)),
    # 11 bits: 2**-12 for each rounding. Measured: L2 1.9e-3, max 1.6e-3; image 15 and 2.2 for
    # random Turbo models (see below), 1 and 0.28 for others.
    "fp16": Range((1e-3, 6e-3), (2e-3, 1e-2), (2, 32), (0.5, 8.0)),
    # 8 bits: 2**-9 for each. Where OpenVINO rounds depends on its fusions, so two of its modes are
    # as far from each other as from PyTorch. Measured: L2 3.5e-2, max 4.8e-2; image 180 and 27 for
    # random Turbo models, 21 and 2.2 for others. What the export measured keeps these
    # others below 7.
    "bf16": Range((1e-2, 1.2e-1), (2e-2, 2e-1), (8, 255), (2.0, 60.0)),
    # 8 bits of the largest weight of a channel; ONNX Runtime also quantises the other factor of
    # matrix products. Measured: L2 2.7e-2, max 5.3e-2; image 182 and 29 for random Turbo models, 19
    # and 2.3 for others.
    "int8": Range((1e-2, 1e-1), (2e-2, 2e-1), (8, 255), (2.0, 60.0)),
    # OpenVINO's options precision=bf16 and f16 (bfloat16 where the processor lacks float16), with
    # any package. The export does not measure them. Measured: L2 6.5e-2 and max 9.3e-2 in small
    # random UNets (7.3e-3 and 1.9e-2 in the demo model); image 251 and 38 for random Turbo models,
    # 23 and 2.6 for others.
    "openvino bf16": Range((1.2e-1, 1.2e-1), (2e-1, 2e-1), (255, 255), (60.0, 60.0)),
    # precision=i8: the same, and 8 bits after each normalisation. Measured: L2 6.8e-2, max 1e-1;
    # image 255 and 39 for random Turbo models, 64 and 5.2 for others.
    "openvino i8": Range((1.5e-1, 1.5e-1), (3e-1, 3e-1), (255, 255), (60.0, 60.0)),
    # Shaders of WebGPU in float16 also sum in it: n products lose sqrt(n) / 2 times 2**-11, 1.3e-2
    # for the 2,880 of a convolution, more than bfloat16's rounding. Not tested (no hardware).
    "webgpu fp16": Range((1.2e-1, 1.2e-1), (2e-1, 2e-1), (255, 255), (60.0, 60.0)),
}
"""By arithmetic: the precision of a component, or a lower one that the backend computes in. Each
range is (floor, ceiling). "Measured" is the largest value in healthy runs (benchmarks.damages).

Turbo models space their timesteps from the last one, t = 999, where the prediction of the image
divides the error of the UNet by sqrt(alpha_bar) = 0.068, and the reference image's guidance scale
of 7.5 multiplies it. With random weights, which correct nothing in later steps, an error of 5 %
gives an image as far from the reference as another image is: RMS 1.4 times the contrast, 56 of 255
at a contrast of 40. Their image shows nothing in 8 bits; their components' outputs do.

TensorRT and CUDA were not tested (no hardware): they have the package's own arithmetic here. So
has WebGPU where it computes in float32; measured in software: L2 7.9e-7, image 1."""
FLOAT32 = "fp32"
FLOAT32_RANGES: Mapping[str, tuple[float, float]] = {
    "float32_relative_l2": (1e-5, 3e-5),
    "float32_max_abs": (5e-5, 1e-4),
}
"""Floor and ceiling for a graph of a lower precision computed in float32, against itself at export;
see float32_outputs.py. Two processors sum in another order, as in "fp32" above. On the machine that
exported there is only what rounding the record to float16 costs: up to 1.2e-6 in the demo model,
4e-6 in an int8 text encoder that is 2 % from PyTorch (max 9.3e-6). ONNX Runtime and OpenVINO are
6.7e-7 apart on int8 graphs of the demo model. A float32 graph has the limits of "fp32"."""
OPENVINO = {"f16": "openvino bf16", "bf16": "openvino bf16", "i8": "openvino i8"}
"""The arithmetic of OpenVINO's option `precision`; with f32 it is the package's own."""
_OWN = ("fp32", "fp16", "bf16", "int8")
"""Precisions of packages. Any other is held to fp32."""
_ORDER = (*_OWN, "openvino bf16", "webgpu fp16", "openvino i8")
"""From the most to the least precise."""


@dataclass(frozen=True)
class Limits:
    """The limits of one graph's outputs.

    range_: of the arithmetic that runs. measured: what the export measured, by output and measure.
    """

    range_: Range
    measured: Mapping[str, Mapping[str, float]]

    def of_output(self, output: str) -> dict[str, float]:
        """Measure -> limit."""
        return {
            kind: _limit(getattr(self.range_, kind), self.measured.get(output, {}).get(kind))
            for kind in ("relative_l2", "max_abs")
        }


class Arithmetics:
    """The arithmetic of each graph: that of its precision, or a lower one of the backend.

    Args:
      backend, options: as `verify` gets them.
    """

    def __init__(self, package: Package, backend: Backends, options: Mapping[str, Any]) -> None:
        self._package, self._backend, self._options = package, backend, options

    def of_graph(self, graph: str) -> str:
        """One of RANGES, for a component or a token graph."""
        requested = backend_of(self._backend, graph)
        engine_dir = self._options.get("engine_dir")
        name = resolve_backend(self._package, graph, requested.name, engine_dir)
        options = {**self._options, **requested.options}
        own = own_arithmetic(self._package.manifest, graph)
        if name == "webgpu" and own == "fp16" and computes_float16():
            return "webgpu fp16"
        return OPENVINO.get(str(options.get("precision")), own) if name == "openvino" else own

    def of_components(self) -> str:
        """The least precise of all components."""
        names = self._package.manifest.components
        return max((self.of_graph(name) for name in names), key=_ORDER.index)


def own_arithmetic(manifest: Manifest, graph: str) -> str:
    """That of the precision of a component or of a token graph."""
    precision = manifest.components[graph.partition(".")[0]].precision
    return precision if precision in _OWN else FLOAT32


def graph_limits(manifest: Manifest, graph: str, arithmetic: str) -> Limits:
    """The limits of a graph's outputs in an arithmetic."""
    as_measured = arithmetic == own_arithmetic(manifest, graph)
    return Limits(RANGES[arithmetic], _figures(manifest, f"{graph}.") if as_measured else {})


def float32_limits(manifest: Manifest, graph: str) -> Callable[[str], Mapping[str, float]]:
    """Output -> the limits of a graph that is computed in float32; see float32_outputs.py."""
    if own_arithmetic(manifest, graph) == FLOAT32:
        limits = graph_limits(manifest, graph, FLOAT32)
        return lambda output: {f"float32_{k}": v for k, v in limits.of_output(output).items()}
    measured = _figures(manifest, f"{graph}.")
    return lambda output: {
        kind: _limit(span, measured.get(output, {}).get(kind))
        for kind, span in FLOAT32_RANGES.items()
    }


def ceilings(arithmetic: str) -> Limits:
    """The limits of outputs for inputs that the export did not measure."""
    return Limits(RANGES[arithmetic], {})


def image_limits(manifest: Manifest, arithmetic: str) -> dict[str, float]:
    """The limits of the image.

    Args:
      arithmetic: the least precise of all components.
    """
    own = max((own_arithmetic(manifest, name) for name in manifest.components), key=_ORDER.index)
    measured = _figures(manifest, "image.").get("pixels", {}) if arithmetic == own else {}
    return {
        kind: _limit(getattr(RANGES[arithmetic], kind), measured.get(kind))
        for kind in ("image_max", "image_rms")
    }


def _figures(manifest: Manifest, prefix: str) -> dict[str, Mapping[str, float]]:
    return {
        key.removeprefix(prefix): figures
        for key, figures in (manifest.verification or {}).items()
        if key.startswith(prefix)
    }


def _limit(span: tuple[float, float], measured: float | None) -> float:
    floor, ceiling = span
    if measured is None or not math.isfinite(measured):
        return ceiling
    return min(max(FACTOR * measured, floor), ceiling)
