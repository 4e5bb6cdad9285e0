"""Further graphs of a text encoder: in two halves, and with an attention mask.

    token_embedding.onnx    input_ids -> inputs_embeds
    inputs_embeds.onnx      input_ids, inputs_embeds -> the outputs of model.onnx
    attention_mask.onnx     input_ids, attention_mask -> the outputs of model.onnx

Token embeddings can be changed between the two halves. All read the weights of model.onnx from its
data file. The second half needs the ids as well: they tell which token is the last one, whose
output is the pooled output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from sdexport.engines.errors import CheckpointError
from sdexport.runtime.models.components import (
    ATTENTION_MASK,
    INPUTS_EMBEDS,
    TOKEN_EMBEDDING,
)

_SAME_IDS = {"Reshape", "Cast", "Identity"}


def write_token_graphs(path: Path) -> None:
    """Write the graphs next to the .onnx file of a text encoder with a data file.

    Raises: CheckpointError: the graph has no single lookup of tokens, or no single causal mask.
    """
    changes = {TOKEN_EMBEDDING: _lookup, INPUTS_EMBEDS: _remainder, ATTENTION_MASK: _masked}
    for name, change in changes.items():
        model = ir.load(path)
        change(model.graph)
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


def _lookup(graph: ir.Graph) -> None:
    result = _inputs_embeds(graph)
    graph.append(_cast(_embeddings(graph), result))
    graph.outputs[:] = [result]


def _remainder(graph: ir.Graph) -> None:
    source, embeddings = _inputs_embeds(graph), _embeddings(graph)
    inner = ir.Value(name=f"{source.name}.inner", type=embeddings.type)
    ir.convenience.replace_all_uses_with(embeddings, inner)
    graph.insert_before(graph[0], _cast(source, inner))
    graph.inputs.append(source)


def _masked(graph: ir.Graph) -> None:
    """Let no token attend to those whose attention_mask is 0."""
    found = [node for node in graph if node.op_type == "LessOrEqual"]
    if len(found) != 1:
        raise CheckpointError(f"{graph.name}: {len(found)} causal masks instead of one")
    (causal,) = found[0].outputs
    ids = graph.inputs[0]
    mask = ir.Value(name=ATTENTION_MASK, type=ids.type, shape=ids.shape)
    columns = ir.Value(name=f"{ATTENTION_MASK}.columns")
    allowed = ir.Value(name=f"{ATTENTION_MASK}.allowed")
    both = ir.Value(name=f"{ATTENTION_MASK}.causal", type=causal.type)
    axes = ir.Value(name=f"{ATTENTION_MASK}.axes", const_value=ir.tensor(np.array([1, 2])))
    axes.const_value.name = axes.name  # type: ignore[union-attr]
    graph.initializers[str(axes.name)] = axes
    to: list[Any] = [ir.AttrInt64("to", int(ir.DataType.BOOL))]
    ir.convenience.replace_all_uses_with(causal, both)
    graph.insert_after(
        found[0],
        [
            ir.Node("", "Cast", [mask], to, outputs=[allowed], name=f"cast.{mask.name}"),
            ir.Node("", "Unsqueeze", [allowed, axes], outputs=[columns], name="unsqueeze.mask"),
            ir.Node("", "And", [causal, columns], outputs=[both], name="and.mask"),
        ],
    )
    graph.inputs.append(mask)
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        _zero_where_all_is_masked(graph, softmax)


def _zero_where_all_is_masked(graph: ir.Graph, softmax: ir.Node) -> None:
    """Replace the NaN of rows without a column to attend to by 0, as PyTorch's attention does."""
    source = softmax.outputs[0]
    dtype = source.dtype or ir.DataType.FLOAT
    zero = ir.Value(name=f"{ATTENTION_MASK}.zero.{dtype.name.lower()}")
    if zero.name not in graph.initializers:
        zero.const_value = ir.tensor(np.zeros((), dtype.numpy()), name=zero.name)
        graph.initializers[str(zero.name)] = zero
    nothing = ir.Value(name=f"{source.name}.nothing", type=ir.TensorType(ir.DataType.BOOL))
    guarded = ir.Value(name=f"{source.name}.guarded", type=ir.TensorType(dtype))
    ir.convenience.replace_all_uses_with(source, guarded)
    choices = [nothing, graph.initializers[str(zero.name)], source]
    graph.insert_after(
        softmax,
        [
            ir.Node("", "IsNaN", [source], outputs=[nothing], name=f"isnan.{source.name}"),
            ir.Node("", "Where", choices, outputs=[guarded], name=f"where.{source.name}"),
        ],
    )


def _inputs_embeds(graph: ir.Graph) -> ir.Value:
    """A float32 value of that name, of the shape of last_hidden_state."""
    (hidden,) = [value for value in graph.outputs if value.name == "last_hidden_state"]
    shape = ir.Shape(hidden.shape or ())
    return ir.Value(name=INPUTS_EMBEDS, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)


def _cast(value: ir.Value, result: ir.Value) -> ir.Node:
    """A cast to the type of the result; engines remove it if the types are equal."""
    to: list[Any] = [ir.AttrInt64("to", int(result.dtype or ir.DataType.FLOAT))]
    return ir.Node("", "Cast", [value], to, outputs=[result], name=f"cast.{result.name}")
