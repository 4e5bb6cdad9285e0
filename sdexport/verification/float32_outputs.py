"""What a graph of a lower precision computes in float32 from its weights as they are stored.

In its own arithmetic such a graph differs from PyTorch by 1e-4 (fp16) to 1e-2 (bf16, int8), which
hides a layer that is off by a few per cent. In float32 it agrees with itself to about 1e-6 on every
processor, so damage shows. The export records these outputs next to PyTorch's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdexport.engines.errors import MissingDependencyError, PackageError
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.verification.comparison import FAILURES, compare, with_prefix
from sdexport.verification.limits import FLOAT32, float32_limits, own_arithmetic
from sdexport.verification.report import Check, Measure

if TYPE_CHECKING:
    from sdexport.engines.session import Session
    from sdexport.runtime.packages.package import Package

_log = logging.getLogger(__name__)
DIFFERENCE, SCALE = "float32.", "float32_scale."
"""Prefixes of the recorded arrays: the difference from PyTorch's output, as float16 in units of the
scale. Float16 rounds it by 2**-12, and it is at most a hundredth of the output."""


def float32_differences(
    folder: Path, graph: str, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays to add to a reference file.

    Args:
      folder: of the package, with the graph.
      arrays: those of the reference file, "input." and "output." of each name.
    Raises: MissingDependencyError: ONNX Runtime is not installed. EngineError: the graph fails.
    """
    component, _, further = graph.partition(".")
    path = folder / component / f"{further or 'model'}.onnx"
    with _open(path, UNCHECKED) as session:
        outputs = session.run(with_prefix(arrays, "input."))
    added: dict[str, np.ndarray] = {}
    for name, expected in with_prefix(arrays, "output.").items():
        difference = outputs[name] - expected
        scale = np.float32(np.abs(difference).max(initial=0)) or np.float32(1)
        added[DIFFERENCE + name] = (difference / scale).astype(np.float16)
        added[SCALE + name] = np.array(scale, np.float32)
    return added


def with_float32(
    checks: Collection[Check],
    package: Package,
    graph: str,
    arrays: Mapping[str, np.ndarray],
    arithmetic: str,
    not_checked: list[str],
) -> list[Check]:
    """The rows of a graph; if it ran in less than float32, its outputs in float32 are measured too.

    They are added to the rows of its plain run on the recorded inputs. What cannot be measured is
    named in a warning, and added to `not_checked`.

    Args:
      checks: of the graph as it ran, in every way.
      arrays: of its reference file. For a float32 graph that ran in a lower precision, PyTorch's
        outputs are the expected ones.
      arithmetic: that it ran in; see limits.py.
    """
    if arithmetic == FLOAT32 or not any(map(_is_plain, checks)):
        return list(checks)
    if own_arithmetic(package.manifest, graph) != FLOAT32 and not _is_recorded(arrays):
        _warn(graph, "the package was exported by an older version; export it again", not_checked)
        return list(checks)
    try:
        with _open(package.model_path(graph), package.model_files(graph)) as session:
            outputs = session.run(with_prefix(arrays, "input."))
    except MissingDependencyError:
        _warn(graph, "ONNX Runtime is not installed", not_checked)
        return list(checks)
    except FAILURES as error:
        note = str(error)
        return [replace(c, note=c.note or note) if _is_plain(c) else c for c in checks]
    limits = float32_limits(package.manifest, graph)
    return [
        _with_measures(check, arrays, outputs, graph, limits) if _is_plain(check) else check
        for check in checks
    ]


def _is_plain(check: Check) -> bool:
    """Whether a row compares a plain run with the recorded output."""
    return bool(check.measures) and not check.way and not check.compared_with


def _warn(graph: str, why: str, not_checked: list[str]) -> None:
    if "." not in graph:  # once for each component
        _log.warning("%s: not compared in float32, which shows small damage: %s", graph, why)
        not_checked.append(f"{graph} in float32: {why}")


def _is_recorded(arrays: Mapping[str, np.ndarray]) -> bool:
    return any(name.startswith(DIFFERENCE) for name in arrays)


def _with_measures(
    check: Check,
    arrays: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    graph: str,
    limits: Callable[[str], Mapping[str, float]],
) -> Check:
    actual = outputs.get(check.output)
    try:
        expected = _expected(arrays, check.output)
    except PackageError as error:
        return replace(check, note=check.note or f"reference/{graph}.npz {error}")
    if expected is None or actual is None or actual.shape != expected.shape:
        return check  # whose note says that the output is missing or of another shape
    errors = compare(expected, actual) or (None, None)
    measures = [
        Measure(kind, error, limit)
        for (kind, limit), error in zip(limits(check.output).items(), errors, strict=True)
    ]
    return replace(check, measures=(*check.measures, *measures))


def _expected(arrays: Mapping[str, np.ndarray], output: str) -> np.ndarray | None:
    """PyTorch's output, and the recorded difference from it.

    Raises: PackageError: the difference is of another shape.
    """
    reference = arrays.get(f"output.{output}")
    if reference is None or not _is_recorded(arrays):
        return reference
    difference, scale = arrays.get(DIFFERENCE + output), arrays.get(SCALE + output)
    if difference is None or scale is None or difference.shape != reference.shape or scale.shape:
        raise PackageError("is damaged: its float32 outputs are incomplete")
    if difference.dtype != np.float16 or scale.dtype != np.float32:
        raise PackageError("is damaged: its float32 outputs are of another type")
    return reference.astype(np.float64) + difference.astype(np.float64) * float(scale)


def _open(path: Path, files: CheckedFiles) -> Session:
    from sdexport.engines.ort.float32_session import open_float32

    return open_float32(path, files=files)
