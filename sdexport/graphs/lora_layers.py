"""The linear and convolution layers of a traced graph: which node computes which layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import nn

from sdexport.engines.errors import CheckpointError

_PRODUCTS = {"MatMul": nn.Linear, "Gemm": nn.Linear, "Conv": nn.Conv2d}


@dataclass(frozen=True)
class LoraLayer:
    """A layer whose output a LoRA may change.

    name: as the checkpoint's module calls it. node: the name of its node in the graph.
    inputs, outputs: channels. kernel: of a convolution, (height, width); empty for a linear layer.
    rank: the number of axes of its input.
    heads: of the attention that it belongs to; 0 if it belongs to none.
    """

    name: str
    node: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    rank: int
    heads: int = 0


def find_layers(
    graph: ir.Graph, module: nn.Module, weight_of: Mapping[str, torch.Tensor]
) -> tuple[LoraLayer, ...]:
    """The layers of a module, in the order of the graph.

    Args:
      graph: as traced, with the shapes of its values.
      module: that was traced.
      weight_of: by the name of an initializer, the module's own tensor behind it, or a view.
    Raises: CheckpointError: a layer has no node of its own, or an input of unknown shape.
    """
    layers = {
        layer.weight.data_ptr(): (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    found: dict[str, LoraLayer] = {}
    for node in graph:
        weight = node.inputs[1] if node.op_type in _PRODUCTS else None
        tensor = None if weight is None else weight_of.get(str(weight.name))
        if tensor is None or tensor.data_ptr() not in layers:
            continue
        name, layer = layers[tensor.data_ptr()]
        source = node.inputs[0]
        shape = None if source is None else source.shape
        is_layer = isinstance(layer, _PRODUCTS[node.op_type]) and getattr(layer, "groups", 1) == 1
        if name in found or shape is None or not is_layer:
            raise CheckpointError(f"{graph.name}: {name}: a layer that LoRA inputs do not support")
        found[name] = LoraLayer(
            name,
            str(node.name),
            layer.weight.shape[1],
            layer.weight.shape[0],
            tuple(layer.weight.shape[2:]),
            len(shape),
            getattr(module.get_submodule(name.rpartition(".")[0]), "heads", 0),
        )
    missing = sorted(name for name, _ in layers.values() if name not in found)
    if missing:
        raise CheckpointError(f"{graph.name}: {missing[0]}: no node computes this layer")
    return tuple(found.values())
