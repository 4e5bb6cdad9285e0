"""Comparing outputs and images with their reference."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sdexport.engines.errors import EngineError, InvalidArgumentError, PackageError
from sdexport.verification.limits import Limits
from sdexport.verification.report import Check, Measure

FAILURES = (EngineError, PackageError, InvalidArgumentError)
"""Errors of a graph or of its reference that become a row of the report. Any other, such as a
missing package, ends the verification."""


def compare(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float] | None:
    """The relative L2 error and the largest error of an array, both scale-sensitive.

    Args:
      expected, actual: of the same shape.
    Returns: the norm of the difference over the norm of `expected`, and the largest difference over
      the largest absolute value of `expected`; where that is all zeros, the difference itself. None
      if either array holds NaN or infinity.
    """
    a, b = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    difference = np.abs(a - b)
    norm, scale = float(np.linalg.norm(a)) or 1.0, float(np.abs(a).max(initial=0)) or 1.0
    return float(np.linalg.norm(difference)) / norm, float(difference.max(initial=0)) / scale


def compare_outputs(
    name: str,
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    limits: Limits,
    *,
    inputs: str = "",
) -> list[Check]:
    """A row for each expected output of a component.

    Args:
      limits: of this component; see limits.py.
      inputs: their sizes, if there are several trials.
    """
    checks = []
    for output, reference in expected.items():
        value = actual.get(output)
        if value is None or value.shape != reference.shape:
            checks.append(failed_check(name, "missing, or of another shape", output, inputs))
            continue
        bounds = limits.of_output(output)
        errors = compare(reference, value) or (None, None)
        measures = tuple(
            Measure(kind, error, bounds[kind])
            for kind, error in zip(("relative_l2", "max_abs"), errors, strict=True)
        )
        note = "NaN or infinity" if errors[0] is None else ""
        checks.append(Check(name, output, measures, note, inputs))
    return checks


def failed_check(name: str, note: str, output: str = "-", inputs: str = "") -> Check:
    """A row for an output that could not be measured, and why."""
    return Check(name, output, (), note, inputs)


def compare_images(expected: np.ndarray, actual: np.ndarray, limits: Mapping[str, float]) -> Check:
    """The row of an image.

    Args:
      expected, actual: (H, W, 3) uint8.
      limits: of image_max and image_rms, in steps of 255; see limits.image_limits.
    """
    if actual.shape != expected.shape:
        return failed_image(f"{actual.shape} instead of {expected.shape}")
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    found = {
        "image_max": float(difference.max(initial=0)),
        "image_rms": float(np.sqrt((difference**2).mean())),
    }
    return Check("image", "pixels", tuple(Measure(k, v, limits[k]) for k, v in found.items()))


def failed_image(note: str) -> Check:
    """A row for an image that could not be generated, and why."""
    return Check("image", "pixels", (), note)


def with_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a reference file whose names begin with a prefix, by the rest of the name."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def statistics(expected: np.ndarray | None, actual: np.ndarray | None) -> dict[str, float | None]:
    """Mean, standard deviation, smallest and largest value of each; None where not finite."""
    found: dict[str, float | None] = {}
    for name, values in {"expected": expected, "actual": actual}.items():
        if values is None or not values.size:
            continue
        for kind in ("mean", "std", "min", "max"):
            with np.errstate(all="ignore"):
                number = float(getattr(values.astype(np.float64), kind)())
            found[f"{name}_{kind}"] = number if math.isfinite(number) else None
    return found
