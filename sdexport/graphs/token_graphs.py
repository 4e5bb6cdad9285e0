"""Splitting a text encoder's graph in two, so that token embeddings can be changed in between.

    token_embedding.onnx    input_ids -> inputs_embeds
    inputs_embeds.onnx      input_ids, inputs_embeds -> the outputs of model.onnx

Both read the weights of model.onnx from its data file. The second graph needs the ids as well: they
tell which token is the last one, whose output is the pooled output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from sdexport.engines.errors import CheckpointError
from sdexport.runtime.models.components import INPUTS_EMBEDS, TOKEN_EMBEDDING

_SAME_IDS = {"Reshape", "Cast", "Identity"}


def write_token_graphs(path: Path) -> None:
    """Write both graphs next to the .onnx file of a text encoder with a data file.

    Raises: CheckpointError: the graph has no single lookup of tokens.
    """
    for name, cut in ((TOKEN_EMBEDDING, _lookup), (INPUTS_EMBEDS, _remainder)):
        model = ir.load(path)
        cut(model.graph, _embeddings(model.graph))
        RemoveUnusedNodesPass()(model)
        RemoveUnusedOpsetsPass()(model)
        model.graph.name = f"{model.graph.name}.{name}"
        ir.save(model, path.with_name(f"{name}.onnx"))


def _embeddings(graph: ir.Graph) -> ir.Value:
    """The output of the token lookup, the only Gather with an index that is the ids alone."""
    found = [node for node in graph if node.op_type == "Gather" and _reads(node.inputs[1], graph)]
    if len(found) != 1:
        raise CheckpointError(f"{graph.name}: {len(found)} lookups of input_ids instead of one")
    return found[0].outputs[0]


def _reads(value: ir.Value | None, graph: ir.Graph) -> bool:
    """Whether a value is input_ids, in any shape or integer type."""
    node = None if value is None else value.producer()
    if node is None:
        return value is graph.inputs[0]
    return node.op_type in _SAME_IDS and _reads(node.inputs[0], graph)


def _lookup(graph: ir.Graph, embeddings: ir.Value) -> None:
    result = _inputs_embeds(graph)
    graph.append(_cast(embeddings, result))
    graph.outputs[:] = [result]


def _remainder(graph: ir.Graph, embeddings: ir.Value) -> None:
    source = _inputs_embeds(graph)
    inner = ir.Value(name=f"{source.name}.inner", type=embeddings.type)
    ir.convenience.replace_all_uses_with(embeddings, inner)
    graph.insert_before(graph[0], _cast(source, inner))
    graph.inputs.append(source)


def _inputs_embeds(graph: ir.Graph) -> ir.Value:
    """A float32 value of that name, of the shape of last_hidden_state."""
    (hidden,) = [value for value in graph.outputs if value.name == "last_hidden_state"]
    shape = ir.Shape(hidden.shape or ())
    return ir.Value(name=INPUTS_EMBEDS, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)


def _cast(value: ir.Value, result: ir.Value) -> ir.Node:
    """A cast to the type of the result; engines remove it if the types are equal."""
    to: list[Any] = [ir.AttrInt64("to", int(result.dtype or ir.DataType.FLOAT))]
    return ir.Node("", "Cast", [value], to, outputs=[result], name=f"cast.{result.name}")
