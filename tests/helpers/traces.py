"""Traces that several tests share: tracing is what takes long in an export."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import onnx_ir as ir

from sdexport.graphs import trace
from sdexport.graphs.wrappers import Part


def clone(model: ir.Model) -> ir.Model:
    """A copy whose types and shapes can be changed; `ir.Model.clone` shares the types."""
    copied = model.clone()
    graph = copied.graph
    produced = (value for node in copied.graph.all_nodes() for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *produced):
        value.type = copy.copy(value.type)
        value.shape = None if value.shape is None else value.shape.copy()
    return copied


@contextmanager
def shared_traces() -> Iterator[None]:
    """Trace every module once for each component and opset, and copy the graph from then on.

    All that follows the tracing is done for each graph: conversion, names, writing.
    """
    traced = trace._traced
    graphs: dict[tuple[str, int, int], tuple[Any, ir.Model]] = {}

    def copied(part: Part, module: Any, opset: int) -> ir.Model:
        key = (part.name, id(module), opset)
        if key not in graphs:
            graphs[key] = module, traced(part, module, opset)  # the module keeps its id
        return clone(graphs[key][1])

    with mock.patch.object(trace, "_traced", copied):
        yield
