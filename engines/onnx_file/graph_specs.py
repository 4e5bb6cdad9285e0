"""Inputs and outputs of an ONNX file with their dimension names, read without the onnx package.

OpenVINO and TensorRT discard the names of dynamic dimensions; a session needs them to check which
sizes must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.declared_values import DeclaredValue
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.session import TensorSpec

Specs = tuple[TensorSpec, ...]


def graph_specs(path: str | Path) -> tuple[Specs, Specs]:
    """Inputs and outputs of the graph; inputs that have an initializer are left out.

    Raises: EngineError: not a well-formed ONNX model, or one with inputs that are not tensors.
      FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        found = survey(path)
        return specs_of(found.inputs, path), specs_of(found.outputs, path)
    except ValueError as error:
        problem = str(error).removeprefix(path.name).strip()
        raise EngineError(f"{path.parent.name or path.stem}: {path.name} {problem}") from None


def specs_of(values: Sequence[DeclaredValue], path: Path) -> Specs:
    """The specs of inputs or outputs of a survey.

    Raises: ValueError: one is no tensor, or declares no dimensions.
    """
    specs = tuple(value.spec for value in values if value.spec is not None)
    if len(specs) != len(values):
        raise ValueError(f"{path.name} has inputs or outputs that are not tensors")
    return specs
