"""What the exports of a model and of an adapter have in common."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import write_config
from sdexport.engines.errors import (
    CheckpointError,
    InvalidArgumentError,
    OutOfMemoryError,
    VerificationError,
    is_out_of_memory,
)
from sdexport.engines.messages import one_line
from sdexport.graphs.precision import check_precision
from sdexport.package_folder import check_destination
from sdexport.runtime.models.family import ModelFamily
from sdexport.runtime.packages.package import Package
from sdexport.runtime.version import __version__
from sdexport.unfinished_exports import sweep
from sdexport.verification.report import Check
from sdexport.verification.verifier import verify_package

DEFAULT_OPSET = 23
OPSETS = range(18, 25)
TRACING = 1_400_000_000
"""Bytes of PyTorch, the traced graph and the reference image, for full-size models."""
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "numpy")
_MAPPED: dict[str, Any] = {"optimization": "none", "prepacking": False}
"""Options with which ONNX Runtime computes from memory-mapped weights. Its optimizer would first
copy all of them, and convert float16 to float32: 19 s and 5.9 GB for SD 1.5's UNet instead of 3 s
and 3.7 GB."""

Progress = Callable[[str, str, int], object]
"""Called with a component, the stage that begins, and the number of stages in all."""
Begin = Callable[[str, str], object]


def checked_destination(
    destination: str | Path, opset: int, precision: str, *, force: bool
) -> Path:
    """The absolute path of a new package, without what a killed export left there.

    Raises: InvalidArgumentError: opset or precision. FileExistsError, PermissionError: see
      check_destination.
    """
    if opset not in OPSETS:
        raise InvalidArgumentError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
    check_precision(precision, opset)
    path = Path(os.path.realpath(destination))
    sweep(path)
    check_destination(path, force=force)
    return path


@contextmanager
def tracing(label: str) -> Iterator[None]:
    """Turn errors of PyTorch and its exporter in a block into CheckpointError.

    Args:
      label: of the checkpoint, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(str(error)):
            raise OutOfMemoryError(f"{label}: {one_line(error, 300)}") from error
        raise CheckpointError(
            f"{label}: PyTorch cannot run or trace it: {one_line(error, 300)}"
        ) from error


def tools_used() -> dict[str, str]:
    """The versions of what makes a package."""
    tools = {"sdexport": __version__, "python": platform.python_version()}
    return tools | {name: metadata.version(name) for name in _TOOLS}


def notes_of(
    source: Mapping[str, str], family: ModelFamily, component: str, precision: str
) -> dict[str, str]:
    """The metadata of a graph: where it comes from, without paths and times."""
    origin = {f"source.{key}": value for key, value in source.items()}
    of_graph = {"component": component, "family": family.name, "precision": precision}
    return {"sdexport": __version__} | of_graph | origin


def write_json(destination: Path, values: Mapping[str, Any]) -> None:
    """Write a configuration without the path that it was loaded from."""
    private = ("_name_or_path", "name_or_path")
    write_config(destination, {k: v for k, v in values.items() if k not in private})


def verified(package: Package, backend: str, begin: Begin) -> dict[str, Any]:
    """What verification measured, to two digits: further digits vary with the machine.

    Raises: VerificationError: a check failed.
    """
    options = _MAPPED if backend == "onnxruntime" else {}
    checks = verify_package(
        package,
        backend,
        hashes=False,
        progress=lambda what: begin(what, "verify"),
        low_memory=True,
        **options,
    )
    failed = [f"{c.name} {c.output}: {c.verdict}" for c in checks if not c.passed]
    if failed:
        raise VerificationError(
            f"the exported graphs do not reproduce PyTorch's outputs: {'; '.join(failed)}"
        )
    recorded = [check for check in checks if not check.way and not check.compared_with]
    return {f"{c.name}.{c.output}": _figures(c) for c in recorded}


def _figures(check: Check) -> dict[str, float]:
    return {
        measure.kind: float(f"{measure.value:.1e}")
        for measure in check.measures
        if measure.value is not None
    }
