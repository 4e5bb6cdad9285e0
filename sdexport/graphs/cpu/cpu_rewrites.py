"""Rewrites of a graph that make ONNX Runtime faster on a CPU and keep its values.

- Group normalisation, which ONNX Runtime computes with a dozen operators that each pass over
  memory, becomes one instance normalisation of the groups.
- Nearest-neighbour upsampling by 2 before a 3x3 convolution becomes four 2x2 convolutions of the
  image itself: 4/9 of the arithmetic.
- Where it is faster, a 3x3 convolution is computed with Winograd tiles (cpu.winograd_onnx): 1/4 of
  the arithmetic, 1/6 after upsampling.

A change of a rewrite raises engines.ort.prepared.prepared_graph.REWRITES_VERSION.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sdexport.engines.errors import PackageError
from sdexport.engines.winograd.transforms import weights_of_halves
from sdexport.graphs.cpu.winograd_onnx import TileIndices, winograd_convolution
from sdexport.graphs.onnx_nodes import NodeBuilder

_SCALES = [1.0, 1.0, 2.0, 2.0]
_NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
_CONVOLUTION = {
    "kernel_shape": (3, 3),
    "strides": (1, 1),
    "dilations": (1, 1),
    "group": 1,
    "auto_pad": "NOTSET",
}
_PADDED = {**_CONVOLUTION, "pads": (1, 1, 1, 1)}
_CHANNEL_SCALES = 21
"""The opset from which on GroupNormalization takes a scale and a bias for each channel."""
_MIN_CHANNELS = 256
"""With fewer channels, transforming the tiles takes as long as the products save."""
_MAX_CHANNEL_PAIRS = 960 * 320
"""Winograd weights take 4 times the memory of a convolution's (11 times after upsampling). Layers
with more of them work on small images, where reading the weights would take longer than the
products."""

_Size = tuple[str | int, ...]


class CpuGraph:
    """An ONNX model to rewrite; weights in files next to it are read when they are needed.

    Args:
      path: the .onnx file.
    """

    def __init__(self, path: Path) -> None:
        self.model = ir.load(path)
        self._folder = path.parent
        self._graph = self.model.graph
        self._indices: dict[tuple[_Size, int], TileIndices] = {}

    def upsamplings(self) -> list[ir.Node]:
        """The Resize nodes that double an image and are used by 3x3 convolutions alone.

        A size that is computed from another tensor's shape (as UNets do) counts as doubling; it
        holds for the input sizes that `multiple` describes.
        """
        return [node for node in self._graph if self._is_upsampling(node)]

    def multiple(self) -> int:
        """What the input's height and width must be multiples of so that every upsampling doubles.

        Returns: a power of two; 1 if any size will do.
        """
        if not any(map(_has_sizes, self.upsamplings())):
            return 1
        return 2 ** sum(node.op_type == "Resize" and _has_sizes(node) for node in self._graph)

    def rewrite(self) -> dict[str, int]:
        """Apply all rewrites in place. Returns: how many of each were made."""
        upsamplings = self.upsamplings()
        counts = {"group normalisations": 0, "upsamplings": len(upsamplings), "winograd": 0}
        upsampled = {node.outputs[0]: node for node in upsamplings}
        for node in list(self._graph):
            resize = upsampled.get(node.inputs[0]) if node.inputs and node.inputs[0] else None
            if self._is_group_norm(node):
                self._replace_group_norm(node)
                counts["group normalisations"] += 1
            elif self._is_convolution(node) and self._gains_from_winograd(node):
                self._replace_with_winograd(node, resize)
                counts["winograd"] += 1
            elif node.op_type == "Conv" and resize is not None:
                self._replace_with_halves(node, resize)
        for node in upsamplings:
            self._graph.remove(node, safe=True)
        self._drop_unused_weights()
        return counts

    def _drop_unused_weights(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]

    def _is_upsampling(self, node: ir.Node) -> bool:
        if node.op_type != "Resize" or node.outputs[0].is_graph_output():
            return False
        attributes = {"mode": "nearest", **_attributes(node)}
        if "axes" in attributes or any(attributes.get(k) != v for k, v in _NEAREST.items()):
            return False
        if _has_sizes(node):
            doubles = _weight(node.inputs[3]) is None
        else:
            scales = _weight(node.inputs[2])
            doubles = scales is not None and self._values(scales).tolist() == _SCALES
        users = node.outputs[0].consumers()
        return doubles and all(u.graph is self._graph and self._is_convolution(u) for u in users)

    def _is_convolution(self, node: ir.Node) -> bool:
        if node.op_type != "Conv" or {**_CONVOLUTION, **_attributes(node)} != _PADDED:
            return False
        weight = _weight(node.inputs[1])
        return _is_float(node.inputs[1]) and weight is not None and _shape(weight)[2:] == (3, 3)

    def _is_group_norm(self, node: ir.Node) -> bool:
        opset = self.model.opset_imports.get("", 0)
        is_norm = node.op_type == "GroupNormalization" and opset >= _CHANNEL_SCALES
        return is_norm and all(map(_is_float, node.inputs[1:3]))

    def _gains_from_winograd(self, node: ir.Node) -> bool:
        weight = _weight(node.inputs[1])
        outputs, channels = _shape(weight)[:2] if weight is not None else (0, 0)
        if min(outputs, channels) < _MIN_CHANNELS or outputs * channels > _MAX_CHANNEL_PAIRS:
            return False
        return all(_is_float(value) for value in node.inputs[2:] if value is not None)

    def _replace_with_winograd(self, node: ir.Node, resize: ir.Node | None) -> None:
        weights = self._values(_weight(node.inputs[1]))
        builder = NodeBuilder(str(node.outputs[0].name), self._graph)
        image, kernels, scale = node.inputs[0], {(0, 0): weights}, 1
        if resize is not None:
            image, kernels, scale = resize.inputs[0], weights_of_halves(weights), 2
        assert image is not None  # for the type checker: both operators require it
        size = _image_size(image)
        indices = self._indices.get((size, scale)) if size else None
        if indices is None:
            indices = TileIndices(builder, image, len(kernels[0, 0][0, 0]), scale)
            if size:
                self._indices[size, scale] = indices
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        spread = None if bias is None else self._reshaped(builder, bias, (1, -1, 1, 1))
        builder.replace(node, winograd_convolution(builder, indices, image, kernels, spread))

    def _replace_with_halves(self, node: ir.Node, resize: ir.Node) -> None:
        name = str(node.outputs[0].name)
        builder, parts = NodeBuilder(name, self._graph), []
        kernels = weights_of_halves(self._values(_weight(node.inputs[1])))
        for (row, column), kernel in kernels.items():
            weight = builder.constant(f"{name}.{row}{column}", kernel)
            pads = [1 - row, 1 - column, row, column]
            inputs = [resize.inputs[0], weight, *node.inputs[2:]]
            parts.append(builder.add("Conv", inputs, pads=pads))
        together = builder.add("Concat", parts, axis=1)
        builder.replace(node, builder.add("DepthToSpace", [together], blocksize=2))

    def _replace_group_norm(self, node: ir.Node) -> None:
        image, scale, bias = node.inputs
        assert scale is not None and bias is not None  # _is_group_norm looked
        attributes = _attributes(node)
        groups, epsilon = attributes["num_groups"], attributes.get("epsilon", 1e-5)
        (channels,) = _shape(_weight(scale))
        builder = NodeBuilder(str(node.outputs[0].name), self._graph)
        add = builder.add
        ones = builder.constant(f"ones.{groups}", np.ones(groups, np.float32))
        zeros = builder.constant(f"zeros.{groups}", np.zeros(groups, np.float32))
        grouped = add("Reshape", [image, builder.vector(0, groups, -1)])
        even = add("InstanceNormalization", [grouped, ones, zeros], epsilon=epsilon)
        by_channel = add("Reshape", [even, builder.vector(0, channels, -1)])
        scaled = add("Mul", [by_channel, self._reshaped(builder, scale, (1, -1, 1))])
        moved = add("Add", [scaled, self._reshaped(builder, bias, (1, -1, 1))])
        builder.replace(node, add("Reshape", [moved, add("Shape", [image])]))

    def _reshaped(self, builder: NodeBuilder, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """A weight per channel, in a shape that broadcasts over an image."""
        values = self._values(_weight(value)).reshape(shape)
        return builder.constant(f"{value.name}{values.shape}", values)

    def _values(self, tensor: Any) -> np.ndarray:
        """A weight's values, wherever they are stored.

        onnx-ir would read external data too, but it rejects files with hard links. The package was
        checked before: its files are in its folder.

        Raises: PackageError: the file ends before the weight does.
        """
        if not isinstance(tensor, ir.ExternalTensor):
            return np.asarray(tensor.numpy())
        dtype, shape = tensor.dtype.numpy(), _shape(tensor)
        with (self._folder / tensor.location).open("rb") as file:
            file.seek(tensor.offset or 0)
            data = file.read(tensor.nbytes)
        if len(data) != tensor.nbytes:
            raise PackageError(f"{tensor.location} is truncated: {tensor.name} ends outside of it")
        return np.frombuffer(data, dtype).reshape(shape)


def _weight(value: ir.Value | None) -> Any:
    """The tensor of an initializer; None for other values."""
    return value.const_value if value is not None and value.is_initializer() else None


def _is_float(value: ir.Value | None) -> bool:
    weight = _weight(value)
    return weight is not None and weight.dtype == ir.DataType.FLOAT


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape.numpy())


def _image_size(image: ir.Value) -> _Size | None:
    """Height and width, as numbers or names, where both are known; equal names are equal sizes."""
    if image.shape is None or len(image.shape) != 4:
        return None
    size = tuple(n if isinstance(n, int) else n.value for n in image.shape[2:])
    return size if all(size) else None  # type: ignore[return-value]


def _has_sizes(node: ir.Node) -> bool:
    """Whether a Resize takes sizes and not scales."""
    return len(node.inputs) > 3 and node.inputs[3] is not None


def _attributes(node: ir.Node) -> dict[str, Any]:
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
