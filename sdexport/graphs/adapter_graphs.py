"""Graphs that take the inputs of adapters, written next to model.onnx.

    lora.onnx                  of the UNet and of text encoders, made from model.onnx
    lora_inputs_embeds.onnx    of text encoders, made from inputs_embeds.onnx
    lora_attention_mask.onnx   of text encoders, made from attention_mask.onnx
    controlnet.onnx            of the UNet, with the residuals of ControlNets as inputs
    t2i_adapter.onnx           of the UNet
    ip_adapter.onnx            of the UNet
    adapters.onnx              of the UNet, with the inputs of several kinds of adapters

They read the weights of model.onnx from its data file, so they take no room to speak of, and
model.onnx itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir

from sdexport.graphs.controlnet_inputs import add_controlnet_inputs
from sdexport.graphs.image_attention import add_ip_inputs
from sdexport.graphs.lora_branches import add_lora_inputs
from sdexport.graphs.lora_layers import LoraLayer
from sdexport.graphs.t2i_additions import add_t2i_inputs
from sdexport.runtime.models.components import (
    ADAPTER_GRAPHS,
    ADAPTERS,
    LORA_GRAPHS,
    AdapterKind,
    Role,
)


@dataclass(frozen=True)
class TracedGraph:
    """What is known of a component whose graph was written.

    layers: all linear and convolution layers. config: of the component in the checkpoint.
    """

    layers: Sequence[LoraLayer]
    config: SimpleNamespace


_ADD: Mapping[AdapterKind, Callable[[ir.Graph, TracedGraph], None]] = {
    AdapterKind.CONTROLNET: lambda graph, traced: add_controlnet_inputs(graph, traced.config),
    AdapterKind.T2I_ADAPTER: lambda graph, traced: add_t2i_inputs(graph, traced.layers),
    AdapterKind.IP_ADAPTER: lambda graph, traced: add_ip_inputs(graph, traced.layers),
    AdapterKind.LORA: lambda graph, traced: add_lora_inputs(graph, traced.layers),
}
"""Each gives a graph the inputs of its kind. LoRAs come last: the others look for what follows a
layer."""


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
    path: Path, role: Role, traced: TracedGraph, kinds: Collection[AdapterKind]
) -> None:
    """Write the graphs of `adapter_graphs_of` next to the .onnx file of a component.

    Args:
      path: of model.onnx, with a data file, and with the token graphs of a text encoder next to it.
    Raises: CheckpointError: the graph does not have the nodes that an adapter changes.
    """
    for name, added in adapter_graphs_of(role, kinds).items():
        model = ir.load(path.with_name(f"{ADAPTER_GRAPHS[name]}.onnx"))
        for kind in filter(added.__contains__, _ADD):
            _ADD[kind](model.graph, traced)
        model.graph.name = f"{model.graph.name}.{name}"
        ir.save(model, path.with_name(f"{name}.onnx"))
