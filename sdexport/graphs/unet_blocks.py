"""Where the blocks of a traced UNet end, found by the names of its layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sdexport.engines.errors import CheckpointError
from sdexport.graphs.lora_layers import LoraLayer

_LAYER = re.compile(r"(?P<block>down_blocks\.(?P<down>\d+)|up_blocks\.(?P<up>\d+)|mid_block)\.")
_PASSED = ("Reshape", "Transpose", "Cast")


@dataclass(frozen=True)
class BlockEnd:
    """A value of the graph to which an adapter's residual is added.

    level: how often height and width were halved before it.
    """

    value: ir.Value
    channels: int
    level: int


class UnetBlocks:
    """The blocks of a UNet.

    Args:
      graph: as traced, without the inputs of adapters. layers: all of the graph's.
    """

    def __init__(self, graph: ir.Graph, layers: Sequence[LoraLayer]) -> None:
        self._graph_name = graph.name
        self._nodes = {node.name: node for node in graph}
        self._layers = {layer.name: layer for layer in layers}
        self._halved = [name for name in self._layers if ".downsamplers." in name]
        self._doubled = [name for name in self._layers if ".upsamplers." in name]

    def node(self, layer: LoraLayer) -> ir.Node:
        """Raises: CheckpointError: the graph does not have it."""
        if layer.node not in self._nodes:
            raise CheckpointError(f"{self._graph_name}: no node {layer.node} for {layer.name}")
        return self._nodes[layer.node]

    def level(self, name: str) -> int:
        """The level at which the attention of a layer's block works."""
        match = _LAYER.match(name)
        if match is None:
            raise CheckpointError(f"{self._graph_name}: {name} belongs to no block")
        if match["down"]:
            return sum(_index(each) < int(match["down"]) for each in self._halved)
        if match["up"]:
            return len(self._halved) - sum(_index(n) < int(match["up"]) for n in self._doubled)
        return len(self._halved)

    def ends(self) -> list[BlockEnd]:
        """What features are added to: of each block on the way down, and of the one in the middle.

        As in diffusers, of a block with attention it is the output of its last attention, before
        the next level; of one without, the block's own output.
        Raises: CheckpointError: a UNet without such blocks, or of another structure.
        """
        count = 1 + max(
            (_index(n) for n in self._layers if n.startswith("down_blocks.")), default=-1
        )
        ends = [self._end(f"down_blocks.{index}") for index in range(count)]
        ends.append(self._end("mid_block", with_attention=False))
        return ends

    def _end(self, block: str, *, with_attention: bool = True) -> BlockEnd:
        last = self._last(f"{block}.attentions", "proj_out") if with_attention else None
        last = last or self._last(f"{block}.downsamplers", "conv")
        level = self.level(f"{block}.") + (last is not None and ".downsamplers." in last.name)
        if last is not None and ".downsamplers." in last.name:
            return BlockEnd(self.node(last).outputs[0], last.outputs, level)
        last = last or self._last(f"{block}.resnets", "conv2")
        if last is None:
            raise CheckpointError(f"{self._graph_name}: {block}: its structure is not supported")
        return BlockEnd(self._after_addition(self.node(last)), last.outputs, level)

    def _last(self, group: str, layer: str) -> LoraLayer | None:
        """The layer of that name in the last module of a list."""
        pattern = re.compile(rf"{re.escape(group)}\.(\d+)\.{layer}")
        found = {int(m[1]): name for name in self._layers if (m := pattern.fullmatch(name))}
        return self._layers[found[max(found)]] if found else None

    def _after_addition(self, node: ir.Node) -> ir.Value:
        """The sum of a layer's output and what goes around the layers before it."""
        value = node.outputs[0]
        while True:
            users = {user for user, _ in value.uses()}
            if len(users) != 1:
                break
            (user,) = users
            others = [each for each in user.inputs if each is not value]
            if user.op_type == "Add" and not all(map(_is_constant, others)):
                return _after_division(user.outputs[0])
            if user.op_type not in (*_PASSED, "Add"):
                break
            value = user.outputs[0]
        raise CheckpointError(f"{self._graph_name}: nothing is added to the output of {node.name}")


def _after_division(value: ir.Value) -> ir.Value:
    """The value divided by a constant, if that is all that is done with it."""
    users = list(value.uses())
    if len(users) == 1 and users[0][0].op_type in ("Div", "Mul"):
        user, place = users[0]
        if _is_constant(user.inputs[1 - place]):
            return user.outputs[0]
    return value


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _index(name: str) -> int:
    """The number of a block."""
    return int(name.split(".")[1])


def image_attention(layers: Sequence[LoraLayer]) -> Iterator[tuple[str, LoraLayer, LoraLayer]]:
    """Name, query and output layer of each cross-attention, in the order of the graph.

    Raises: CheckpointError: one has no such layers.
    """
    by_name = {layer.name: layer for layer in layers}
    for layer in layers:
        name, _, last = layer.name.rpartition(".")
        if last == "to_q" and name.endswith(".attn2"):
            output = by_name.get(f"{name}.to_out.0")
            if output is None or not layer.heads or layer.outputs % layer.heads:
                raise CheckpointError(f"{name}: an attention that IP-Adapters do not support")
            yield name, layer, output
