"""Comparing outputs and images with their reference, and the bounds that they must keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from sdexport.engines.errors import EngineError, InvalidArgumentError, PackageError
from sdexport.verification.report import Check

FAILURES = (EngineError, PackageError, InvalidArgumentError)
"""Errors of a graph or of its reference that become a row of the report. Any other, such as a
missing package, ends the verification."""

EXACT = ("fp32", "unknown")
"""Precisions in which a component must reproduce PyTorch's float32 outputs."""
COMPONENT_BOUND = 5e-5
"""Largest difference over the reference's largest value, for components in an EXACT precision. Two
float32 kernels that sum a few thousand products in another order differ by 1e-6 to 1e-5 after some
sixty layers: 8.3e-6 measured at most, in SD 1.5's VAE decoder. One weight tensor of the demo
model's UNet scaled by 1.1 shows as 2.9e-4."""
LOW_PRECISION_BOUND = 1e-3
"""1 - cosine of a component in a lower precision."""
IMAGE_BOUND = 1
"""Steps of 255. Rounding to 8 bits may go to either side of a half, never further."""
IMAGE_DECIBELS = {"fp16": 35.0, "bf16": 25.0, "int8": 25.0}
"""PSNR between images. bfloat16 has three bits less than float16, and int8 weights four: 18 and 24
decibels, all else being equal; the demo model loses 21 and 20, and stays at 45."""


def compare(expected: np.ndarray, actual: np.ndarray) -> tuple[float | None, float]:
    """Compare two arrays of the same shape.

    Returns: the largest difference relative to the largest expected value, None if either array
      holds NaN or infinity; and the cosine of the two.
    """
    a, b = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None, 0.0
    scale = float(np.abs(a).max()) or 1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b)) or 1.0
    return float(np.abs(a - b).max()) / scale, float(a @ b) / norms


def compare_outputs(
    name: str,
    precision: str,
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    *,
    inputs: str = "",
) -> list[Check]:
    """A row for each expected output of a component, with the bound of its precision."""
    checks = []
    for output, reference in expected.items():
        value = actual.get(output)
        if value is None or value.shape != reference.shape:
            checks.append(failed_check(name, "missing, or of another shape", output, inputs))
            continue
        error, cosine = compare(reference, value)
        note = "NaN or infinity" if error is None else ""
        bound, metric = COMPONENT_BOUND, "relative"
        if precision not in EXACT:
            error = None if error is None else max(0.0, 1 - cosine)
            bound, metric = LOW_PRECISION_BOUND, "1 - cosine"
        checks.append(Check(name, output, error, cosine, bound, note, metric, inputs))
    return checks


def failed_check(name: str, note: str, output: str = "-", inputs: str = "") -> Check:
    """A row for an output that could not be measured, and why."""
    return Check(name, output, None, None, COMPONENT_BOUND, note, inputs=inputs)


def compare_images(expected: np.ndarray, actual: np.ndarray, precisions: Iterable[str]) -> Check:
    """The row of an image, with the bound of the components' precisions.

    Args:
      expected, actual: (H, W, 3) uint8.
    """
    if actual.shape != expected.shape:
        return failed_image(f"{actual.shape} instead of {expected.shape}")
    difference = np.abs(actual.astype(float) - expected.astype(float))
    _, cosine = compare(expected, actual)
    strictest = max(IMAGE_DECIBELS.values())
    lower = [IMAGE_DECIBELS.get(p, strictest) for p in precisions if p not in EXACT]
    if lower:
        noise = float((difference**2).mean())
        decibels = min(10 * math.log10(255**2 / noise), 100.0) if noise else 100.0
        return Check("image", "pixels", decibels, cosine, min(lower), "", "PSNR")
    return Check("image", "pixels", float(difference.max()), cosine, IMAGE_BOUND, "", "of 255")


def failed_image(note: str) -> Check:
    """A row for an image that could not be generated, and why."""
    return Check("image", "pixels", None, None, IMAGE_BOUND, note, "of 255")
