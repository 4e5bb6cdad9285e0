"""What an ONNX file consists of, found in one pass over it: operators, weights, inputs, sizes.

A graph is surveyed before a library opens it, because a few bytes can ask for any amount of work
or memory. Whoever needs to know something of a graph asks the survey, so a file is read once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import FileIdentity, open_guarded
from sdexport.engines.onnx_file.declared_values import DeclaredValue
from sdexport.engines.onnx_file.graph_walk import GraphWalk
from sdexport.engines.onnx_file.tensor_checks import ExternalTensor, TensorChecks
from sdexport.engines.onnx_file.wire_format import mapped_model


@dataclass(frozen=True)
class GraphSurvey:
    """What was found.

    operators: how often each (domain, operator) is used; "" is the domain of ONNX.
    functions: how many functions the file defines for itself. depth: of graphs inside of operators.
    external: tensors whose data is in other files. locations: every file name that tensors refer
    to, exactly as the file has it.
    problems: sizes that no model needs or that contradict each other, in words.
    inputs, outputs: of the graph itself; inputs that have an initializer are left out.
    opset: version of ONNX's own operators; None if the file does not say.
    metadata: the model's metadata_props, without entries of more than 4096 bytes.
    factors: tensors that are nothing but the right factor of matrix products.
    """

    operators: Mapping[tuple[str, str], int]
    external: tuple[ExternalTensor, ...]
    locations: frozenset[str]
    functions: int
    depth: int
    problems: tuple[str, ...]
    inputs: tuple[DeclaredValue, ...]
    outputs: tuple[DeclaredValue, ...]
    opset: int | None
    metadata: Mapping[str, str]
    factors: frozenset[str]


_REMEMBERED = 64
_SETTLED = 2 * 10**9
"""Nanoseconds after which a second change of a file shows in its time of change."""
_surveyed: dict[tuple[Path, FileIdentity], GraphSurvey] = {}
"""Results by file, as long as the files do not change."""


def survey(path: str | Path) -> GraphSurvey:
    """Survey an ONNX file.

    Raises: ValueError: not a well-formed ONNX model (truncated, or another kind of file), or one
      with more than 256 metadata entries. EngineError: no regular file. FileNotFoundError: no such
      file.
    """
    path = Path(path)
    with open_guarded(path, error=EngineError) as file:
        key = path, FileIdentity.of(os.fstat(file.fileno()))
        if key in _surveyed:
            return _surveyed[key]
        walk = GraphWalk(TensorChecks(path.name))
        with mapped_model(file, path.name) as model:
            walk.model(model.data, model.start, model.end)
    found = _survey_of(walk)
    if time.time_ns() - key[1].mtime_ns > _SETTLED:
        if len(_surveyed) >= _REMEMBERED:
            _surveyed.clear()
        _surveyed[key] = found
    return found


def _survey_of(walk: GraphWalk) -> GraphSurvey:
    tensors = walk.tensors
    return GraphSurvey(
        walk.operators,
        tuple(tensors.external),
        frozenset(tensors.locations),
        walk.functions,
        walk.depth,
        tuple(tensors.problems),
        tuple(value for value in walk.inputs if value.name not in walk.initializers),
        tuple(walk.outputs),
        walk.opset,
        walk.metadata,
        walk.factors(),
    )
