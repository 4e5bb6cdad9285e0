"""Graphs that take the inputs of adapters, written next to model.onnx.

    lora.onnx                  of the UNet and of text encoders, made from model.onnx
    lora_inputs_embeds.onnx    of text encoders, made from inputs_embeds.onnx
    lora_attention_mask.onnx   of text encoders, made from attention_mask.onnx
    adapters.onnx              of the UNet, with the inputs of several kinds of adapters

They read the weights of model.onnx from its data file, so they take no room to speak of, and
model.onnx itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from sdexport.graphs.lora_branches import add_lora_inputs
from sdexport.graphs.lora_layers import LoraLayer
from sdexport.runtime.models.components import (
    ADAPTER_GRAPHS,
    ADAPTERS,
    LORA_GRAPHS,
    AdapterKind,
    Role,
)

_ADD: Mapping[AdapterKind, Callable[[ir.Graph, Sequence[LoraLayer]], None]] = {
    AdapterKind.LORA: add_lora_inputs,
}


def kinds_of(role: Role, kinds: Collection[AdapterKind]) -> frozenset[AdapterKind]:
    """Those kinds of adapters that change a component of this role."""
    takes = {Role.DENOISER: set(AdapterKind), Role.TEXT_ENCODER: {AdapterKind.LORA}}
    return frozenset(takes.get(role, set()).intersection(kinds))


def adapter_graphs_of(role: Role, kinds: Collection[AdapterKind]) -> dict[str, list[AdapterKind]]:
    """The graphs to write of a component, by name, each with the kinds that it takes.

    Args:
      kinds: of `kinds_of`. One graph takes each of them alone, and one takes all if there are
        several; they are in the order of AdapterKind.
    """
    ordered = [kind for kind in AdapterKind if kind in kinds]
    graphs = {kind.value: [kind] for kind in ordered}
    if role is Role.TEXT_ENCODER and ordered:
        graphs = dict.fromkeys(LORA_GRAPHS, ordered)
    if len(ordered) > 1:
        graphs[ADAPTERS] = ordered
    return graphs


def write_adapter_graphs(
    path: Path, role: Role, layers: Sequence[LoraLayer], kinds: Collection[AdapterKind]
) -> None:
    """Write the graphs of `adapter_graphs_of` next to the .onnx file of a component.

    Args:
      path: of model.onnx, with a data file, and with the token graphs of a text encoder next to it.
      layers: those that a LoRA may change.
    Raises: CheckpointError: the graph does not have the node of a layer.
    """
    for name, added in adapter_graphs_of(role, kinds).items():
        model = ir.load(path.with_name(f"{ADAPTER_GRAPHS[name]}.onnx"))
        for kind in added:
            _ADD[kind](model.graph, layers)
        model.graph.name = f"{model.graph.name}.{name}"
        ir.save(model, path.with_name(f"{name}.onnx"))
