"""Residuals of T2I-Adapters as inputs of a UNet's graph.

diffusers adds them within the blocks on the way down: what follows and the skip connections read
the sum. Source: Mou et al. 2023, arXiv 2302.08453, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sdexport.graphs.lora_layers import LoraLayer
from sdexport.graphs.onnx_nodes import NodeBuilder
from sdexport.graphs.unet_blocks import UnetBlocks
from sdexport.runtime.adapters.t2i_inputs import residual_name, residual_shape

_FLOAT = ir.DataType.FLOAT


def add_t2i_inputs(graph: ir.Graph, layers: Sequence[LoraLayer]) -> None:
    """Give a UNet's graph an input for the residual of each block, and add it.

    Raises: CheckpointError: a UNet of another structure.
    """
    for index, end in enumerate(UnetBlocks(graph, layers).ends()):
        shape = ir.Shape(residual_shape(end.channels, end.level))
        source = ir.Value(name=residual_name(index), type=ir.TensorType(_FLOAT), shape=shape)
        graph.inputs.append(source)
        add_to(graph, end.value, source, f"t2i_adapter.{index}")


def add_to(graph: ir.Graph, value: ir.Value, source: ir.Value, prefix: str) -> None:
    """Let everything that read a value read its sum with a float32 input."""
    builder = NodeBuilder(prefix, graph)
    dtype = value.dtype or _FLOAT
    uses = list(value.uses())
    added = source if dtype == _FLOAT else builder.add("Cast", [source], to=int(dtype))
    total = builder.add("Add", [value, added])
    total.type = value.type
    for user, place in uses:
        user.replace_input_with(place, total)
    producer = value.producer()
    assert producer is not None  # for the type checker: it is the output of a layer
    graph.insert_after(producer, builder.nodes)
