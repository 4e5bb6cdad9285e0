"""What ONNX Runtime does not find by itself on a CPU: the same values by fewer operations.

Group normalisation it computes by a dozen operators that each go through memory, some of them
mere copies; as an instance normalisation of the groups it is one. A 3x3 convolution of a doubled
image is four of 2x2 of the image itself, which is 4/9 of the arithmetic. Where
it gains, a convolution is computed by tiles (cpu.winograd_onnx): 1/4 of the arithmetic, 1/6 for a
doubled image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from sdexport.engines.winograd.transforms import weights_of_halves
from sdexport.graphs.cpu.winograd_onnx import Places, by_tiles
from sdexport.graphs.onnx_nodes import Nodes

VERSION = 2
"""Of what is done here: graphs prepared by another one are not what is asked for."""
_DOUBLED = [1.0, 1.0, 2.0, 2.0]
_NEAREST = {
    "mode": b"nearest",
    "coordinate_transformation_mode": b"asymmetric",
    "nearest_mode": b"floor",
}
_CONVOLUTION = {
    "kernel_shape": [3, 3],
    "strides": [1, 1],
    "dilations": [1, 1],
    "group": 1,
    "auto_pad": b"NOTSET",
}
_PADDED = {**_CONVOLUTION, "pads": [1, 1, 1, 1]}
_BY_CHANNEL = 21
"""The operator set from which on group normalisation has a scale and a bias for each channel."""
_FEWEST_TILED = 256
"""Channels. With fewer, the tiles' transforms take what the products gain."""
_MOST_TILED = 960 * 320
"""Pairs of channels. Tiles take 4 times the memory of such weights (11 times for doubled images),
and where there are more, the images are small ones, for which reading them would take longer than
the products."""

_Size = tuple[str | int, ...]


class CpuGraph:
    """An ONNX model without its weights, to be rewritten; weights are read as they are needed.

    Args:
      path: the .onnx file; its external data is not loaded.
    """

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path, load_external_data=False)
        self._folder = path.parent
        self._graph = self.model.graph
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._sizes = _sizes(self._graph)
        self._places: dict[tuple[_Size, int], Places] = {}

    def doubled(self) -> dict[str, Any]:
        """The doublings that are part of a convolution, by the name of what they give.

        Sizes that are computed from other images of the graph (as UNets do) count as twice the
        image's own; see `multiple`.
        """
        uses: dict[str, list[Any]] = {}
        for node in _all_nodes(self._graph.node):
            for name in node.input:
                uses.setdefault(name, []).append(node)
        ends = {value.name for value in self._graph.output}
        found = {}
        for node in self._graph.node:
            if node.op_type != "Resize" or not self._is_doubling(node):
                continue
            users = uses.get(node.output[0], [])
            if node.output[0] not in ends and all(map(self._is_convolution, users)):
                found[node.output[0]] = node
        return found

    def multiple(self) -> int:
        """Of what height and width of the input must be multiples, that every doubling is one."""
        if not any(map(_is_sized, self.doubled().values())):
            return 1
        return 2 ** sum(node.op_type == "Resize" and _is_sized(node) for node in self._graph.node)

    def rewrite(self) -> dict[str, int]:
        """Rewrite what can be. Returns: how often, by what."""
        doubled, nodes = self.doubled(), []
        opset = max((o.version for o in self.model.opset_import if not o.domain), default=0)
        counts = {"group normalisations": 0, "doubled images": len(doubled), "tiles": 0}
        for node in self._graph.node:
            is_norm = node.op_type == "GroupNormalization" and opset >= _BY_CHANNEL
            if is_norm and self._is_float(node.input[1:3]):
                nodes += self._normalised(node)
                counts["group normalisations"] += 1
            elif self._is_convolution(node) and self._gains_by_tiles(node):
                resize = doubled.get(node.input[0])
                nodes += self._by_tiles(node, resize.input[0] if resize else None)
                counts["tiles"] += 1
            elif node.op_type == "Conv" and node.input[0] in doubled:
                nodes += self._on_halves(node, doubled[node.input[0]].input[0])
            elif not (node.op_type == "Resize" and node.output[0] in doubled):
                nodes.append(node)
        self._replace(nodes)
        return counts

    def products(self, name: str) -> list[Any]:
        """Matrix products of an input of the graph with weights; the input may be cast before."""
        sources, found = {name, *(node.output[0] for node in self._casts(name))}, []
        for node in self._graph.node:
            if node.op_type == "MatMul" and node.input[0] in sources:
                weights = self._weights.get(node.input[1])
                if weights is not None and len(weights.dims) == 2:
                    found.append(node)
        return found

    def split(self, name: str) -> onnx.ModelProto | None:
        """Take the products of an input out, into a model of their own; None if there are none.

        What that one gives are inputs of this one, which may still need the input itself.
        """
        products = self.products(name)
        if not products:
            return None
        (source,) = (value for value in self._graph.input if value.name == name)
        rows = [dim.dim_param or dim.dim_value for dim in source.type.tensor_type.shape.dim[:2]]
        given = []
        for node in products:
            weights = self._weights[node.input[1]]
            shape = [*rows, weights.dims[1]]
            given.append(helper.make_tensor_value_info(node.output[0], weights.data_type, shape))
        apart = {value.name for value in given}
        weights = [self._weights[node.input[1]] for node in products]
        before = helper.make_model(
            helper.make_graph([*self._casts(name), *products], "before", [source], given, weights),
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
        )
        self._replace([node for node in self._graph.node if node.output[0] not in apart])
        used = {name for node in _all_nodes(self._graph.node) for name in node.input}
        kept = [value for value in self._graph.input if value.name in used]
        del self._graph.input[:]
        self._graph.input.extend([*kept, *given])
        return before

    def _casts(self, name: str) -> list[Any]:
        return [n for n in self._graph.node if n.op_type == "Cast" and n.input[0] == name]

    def _replace(self, nodes: list[Any]) -> None:
        """Let the graph have these nodes, and of the weights those that they use."""
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        used = {name for node in _all_nodes(nodes) for name in node.input}
        kept = [tensor for tensor in self._weights.values() if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _is_doubling(self, node: Any) -> bool:
        held = {"mode": b"nearest", **_attributes(node)}
        if "axes" in held or any(held.get(name) != value for name, value in _NEAREST.items()):
            return False
        if _is_sized(node):
            return node.input[3] not in self._weights
        scales = self._weights.get(node.input[2])
        return scales is not None and self._values(scales).tolist() == _DOUBLED

    def _is_convolution(self, node: Any) -> bool:
        held = {**_CONVOLUTION, **_attributes(node)}
        if node.op_type != "Conv" or held != _PADDED or not self._is_float(node.input[1:2]):
            return False
        return list(self._weights[node.input[1]].dims[2:]) == [3, 3]

    def _is_float(self, names: Any) -> bool:
        tensors = [self._weights.get(name) for name in names]
        return all(t is not None and t.data_type == onnx.TensorProto.FLOAT for t in tensors)

    def _gains_by_tiles(self, node: Any) -> bool:
        results, channels = self._weights[node.input[1]].dims[:2]
        if min(results, channels) < _FEWEST_TILED or results * channels > _MOST_TILED:
            return False
        return self._is_float(name for name in node.input[2:] if name)

    def _by_tiles(self, node: Any, halved: str | None) -> list[Any]:
        """Args: halved: the image of which the convolution's own is twice as large."""
        weights, result = self._values(self._weights[node.input[1]]), node.output[0]
        nodes = Nodes(result, self._weights)
        image, kernels, scale = node.input[0], {(0, 0): weights}, 1
        if halved is not None:
            image, kernels, scale = halved, weights_of_halves(weights), 2
        size = self._sizes.get(image)
        places = self._places.get((size, scale)) if size else None
        if places is None:
            places = Places(nodes, image, len(kernels[0, 0][0, 0]), scale)
            if size:
                self._places[size, scale] = places
        bias = [self._spread(nodes, name, (1, -1, 1, 1)) for name in node.input[2:] if name]
        by_tiles(nodes, places, image, kernels, bias[0] if bias else None, result)
        return nodes.made

    def _on_halves(self, node: Any, image: str) -> list[Any]:
        weights, result = self._values(self._weights[node.input[1]]), node.output[0]
        nodes, parts = Nodes(result, self._weights), []
        for (row, column), part in weights_of_halves(weights).items():
            weight = nodes.constant(f"{result}.{row}{column}", part)
            pads = [1 - row, 1 - column, row, column]
            parts.append(nodes.add("Conv", [image, weight, *node.input[2:]], pads=pads))
        together = nodes.add("Concat", parts, axis=1)
        nodes.add("DepthToSpace", [together], result, blocksize=2)
        return nodes.made

    def _normalised(self, node: Any) -> list[Any]:
        held, (image, scale, bias), result = _attributes(node), node.input, node.output[0]
        groups, channels = held["num_groups"], self._weights[scale].dims[0]
        nodes = Nodes(result, self._weights)
        add = nodes.add
        ones = nodes.constant(f"ones.{groups}", np.ones(groups, np.float32))
        zeros = nodes.constant(f"zeros.{groups}", np.zeros(groups, np.float32))
        grouped = add("Reshape", [image, nodes.vector(0, groups, -1)])
        epsilon = held.get("epsilon", 1e-5)
        even = add("InstanceNormalization", [grouped, ones, zeros], epsilon=epsilon)
        by_channel = add("Reshape", [even, nodes.vector(0, channels, -1)])
        scaled = add("Mul", [by_channel, self._spread(nodes, scale, (1, -1, 1))])
        moved = add("Add", [scaled, self._spread(nodes, bias, (1, -1, 1))])
        add("Reshape", [moved, add("Shape", [image])], result)
        return nodes.made

    def _spread(self, nodes: Nodes, name: str, shape: tuple[int, ...]) -> str:
        """A weight for each channel, in the shape that goes with an image."""
        values = self._values(self._weights[name]).reshape(shape)
        return nodes.constant(f"{name}{values.shape}", values)

    def _values(self, tensor: Any) -> np.ndarray:
        """A tensor's values, wherever they lie. The package was checked: they lie in its folder."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        info = ExternalDataInfo(tensor)
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        with (self._folder / info.location).open("rb") as file:
            file.seek(info.offset or 0)
            data = file.read(math.prod(shape) * kind.itemsize)
        if len(data) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{info.location} is truncated: {tensor.name} ends outside of it")
        return np.frombuffer(data, kind).reshape(shape)


def _sizes(graph: Any) -> dict[str, _Size]:
    """Height and width of images of which they are known, by name; those of a name are one."""
    found = {}
    for value in (*graph.input, *graph.value_info):
        dims = value.type.tensor_type.shape.dim
        size = tuple(dim.dim_param or dim.dim_value for dim in dims[2:])
        if len(dims) == 4 and all(size):
            found[value.name] = size
    return found


def _is_sized(node: Any) -> bool:
    return len(node.input) > 3 and bool(node.input[3])


def _attributes(node: Any) -> Mapping[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _all_nodes(nodes: Any) -> Any:
    """Nodes, and those of the graphs inside of them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)
