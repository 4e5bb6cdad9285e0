"""Packages in lower precisions, converted from the graphs of a float32 package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import onnx_ir as ir

from sdexport.exporter import export


def export_from_graphs(package: Path, checkpoint: Path, precision: str, folder: Path) -> None:
    """Export a checkpoint, with the graphs of its float32 package in place of a new trace."""
    with graphs_of(package):
        export(checkpoint, folder, precision=precision)


@contextmanager
def graphs_of(package: Path) -> Iterator[None]:
    """Have exports take the graphs of a float32 package in place of new traces."""
    with mock.patch("sdexport.exporter.trace", partial(_convert, package)):
        yield


def _convert(
    package: Path, part: Any, module: Any, path: Path, *, change: Any, notes: Any, **_: object
) -> None:
    path.parent.mkdir(parents=True)
    model = typed(onnx.load(package / part.name / "model.onnx"))
    change(model)
    model.metadata_props.update(notes)
    separate = part.name == "text_encoder"
    ir.save(model, path, external_data="model.onnx_data" if separate else None)


def typed(model: onnx.ModelProto) -> ir.Model:
    """A graph with the type of every value, which the file does not have."""
    found = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    for node in found.graph:
        for value in node.outputs:
            if value not in found.graph.outputs:
                value.shape = None
    return found
