"""Two more graphs of a text encoder, cut out of the first one: its beginning, and the rest.

    token_embedding.onnx    input_ids -> inputs_embeds
    inputs_embeds.onnx      input_ids, inputs_embeds -> the outputs of model.onnx

One after the other they are the encoder, and between them a token's embedding can be changed. Both
read the weights of model.onnx in the file beside it. The second one asks for the ids too: they say
which token is the last, whose output is the pooled one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from sdexport.engines.errors import CheckpointError
from sdexport.runtime.packages.package import INPUTS_EMBEDS, TOKEN_EMBEDDING

_SAME_IDS = {"Reshape", "Cast", "Identity"}


def write_token_graphs(path: Path) -> None:
    """Write both graphs beside the .onnx file of a text encoder whose weights lie beside it.

    Raises: CheckpointError: the graph does not look tokens up in one table.
    """
    for name, cut in ((TOKEN_EMBEDDING, _lookup), (INPUTS_EMBEDS, _rest)):
        model = ir.load(path)
        cut(model.graph, _embeddings(model.graph))
        RemoveUnusedNodesPass()(model)
        RemoveUnusedOpsetsPass()(model)
        model.graph.name = f"{model.graph.name}.{name}"
        ir.save(model, path.with_name(f"{name}.onnx"))


def _embeddings(graph: ir.Graph) -> ir.Value:
    """What the lookup of the tokens gives: the first floats that are made of the ids alone."""
    found = [node for node in graph if node.op_type == "Gather" and _reads(node.inputs[1], graph)]
    if len(found) != 1:
        raise CheckpointError(f"{graph.name}: {len(found)} lookups of input_ids instead of one")
    return found[0].outputs[0]


def _reads(value: ir.Value | None, graph: ir.Graph) -> bool:
    """Whether these are the input ids, in whatever shape or type of integer."""
    node = None if value is None else value.producer()
    if node is None:
        return value is graph.inputs[0]
    return node.op_type in _SAME_IDS and _reads(node.inputs[0], graph)


def _lookup(graph: ir.Graph, embeddings: ir.Value) -> None:
    result = _edge(graph)
    graph.append(_cast(embeddings, result))
    graph.outputs[:] = [result]


def _rest(graph: ir.Graph, embeddings: ir.Value) -> None:
    given = _edge(graph)
    inner = ir.Value(name=f"{given.name}.inner", type=embeddings.type)
    ir.convenience.replace_all_uses_with(embeddings, inner)
    graph.insert_before(graph[0], _cast(given, inner))
    graph.inputs.append(given)


def _edge(graph: ir.Graph) -> ir.Value:
    """inputs_embeds in float32; its shape is that of what the encoder makes of it."""
    (hidden,) = [value for value in graph.outputs if value.name == "last_hidden_state"]
    shape = ir.Shape(hidden.shape or ())
    return ir.Value(name=INPUTS_EMBEDS, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)


def _cast(value: ir.Value, result: ir.Value) -> ir.Node:
    """To the type of the result; engines leave it out where both have the same."""
    to: list[Any] = [ir.AttrInt64("to", int(result.dtype or ir.DataType.FLOAT))]
    return ir.Node("", "Cast", [value], to, outputs=[result], name=f"cast.{result.name}")
