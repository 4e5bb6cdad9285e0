"""Which weight files an ONNX file refers to: what must be known before it is trusted."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.onnx_file.graph_survey import survey


def external_data_locations(path: str | Path) -> set[str]:
    """Every file name that tensors of the graph refer to, exactly as the file has it.

    Raises: ValueError: not a well-formed ONNX model (truncated, or another kind of file).
      FileNotFoundError: no such file.
    """
    return set(survey(path).locations)
