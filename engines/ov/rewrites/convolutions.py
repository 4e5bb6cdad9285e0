"""Rewrites of convolutions and products in an OpenVINO model of fixed shapes, for a CPU.

OpenVINO computes convolutions directly, at the full speed of its matrix product; only fewer
operations make them faster. `winograd.transforms` describes two ways to do that. Here they are
written in OpenVINO's own operations, and applied where measurements on two cores with AVX-512
showed a gain (docs/performance.md). Products whose result is split are rewritten along with them,
see split_products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from openvino import Type
from openvino import opset13 as ops
from openvino.utils import replace_node

from sdexport.engines.ov.rewrites.low_rank import Branch
from sdexport.engines.ov.rewrites.nodes import as_type, constant, constant_behind, values_of
from sdexport.engines.ov.rewrites.split_products import rewrite_split
from sdexport.engines.winograd.transforms import (
    KERNEL,
    kernel_matrix,
    tile_matrices,
    transformed_weights,
    weights_of_halves,
)

MIN_TILES = 32
"""With fewer tiles, reading (tile + 2)**2 / 9 times as many weights costs more than is saved."""
MIN_CHANNELS = {4: 110, 2: 400}
"""By tile, of C * K / (C + K). With fewer channels the transforms cost more than is saved: they
write (tile + 2)**2 values for tile**2."""


def rewrite_convolutions(
    model: Any, *, winograd: bool, branches: Sequence[Branch] = ()
) -> dict[str, int]:
    """Rewrite the convolutions and products that become faster.

    Args:
      model: an openvino.Model whose shapes are all fixed; it is changed.
      winograd: False leaves out Winograd's convolutions, whose rounding errors are several times
        those of a direct one: negligible in float32, too large in bfloat16.
      branches: of the model; those of convolutions are rewritten along with them.
    Returns: how many nodes were rewritten in each way.
    """
    counts = {"halves": 0, "winograd": 0, "splits": 0}
    added = {_convolution_of(branch): branch for branch in branches if branch.kernel}
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Split", "VariadicSplit"):
            counts["splits"] += rewrite_split(node)
        elif _is_plain_3x3(node):
            small = _doubled(node)
            if small is not None:
                _replace(node, small, _on_halves)
                counts["halves"] += 1
            elif winograd and (tile := _tile(node)):
                _winograd(node, tile, added.get(node.get_name()))
                counts["winograd"] += 1
    if any(counts.values()):
        model.validate_nodes_and_infer_types()
    return counts


def _is_plain_3x3(node: Any) -> bool:
    """Whether it is a convolution of constant weights, stride 1 and one pixel of zero padding."""
    if node.get_type_name() != "Convolution" or constant_behind(node.input_value(1)) is None:
        return False
    attributes = node.get_attributes()
    return (
        list(node.get_input_shape(1)[2:]) == [KERNEL, KERNEL]
        and attributes["auto_pad"] == "explicit"
        and all(
            list(attributes[name]) == [1, 1]
            for name in ("strides", "dilations", "pads_begin", "pads_end")
        )
    )


def _doubled(node: Any) -> Any:
    """The image before a nearest-neighbour upsampling by 2 of a convolution's input, or None."""
    source = node.input_value(0).get_node()
    if source.get_type_name() != "Interpolate":
        return None
    small = source.input_value(0)
    height, width = list(small.get_shape())[2:]
    attributes = source.get_attributes()
    if (
        list(source.get_output_shape(0)) == [*list(small.get_shape())[:2], 2 * height, 2 * width]
        and attributes["mode"] == "nearest"
        and (attributes["coordinate_transformation_mode"], attributes["nearest_mode"])
        in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
    ):
        return small
    return None


def _tile(node: Any) -> int:
    """The side of the Winograd tiles to use, 0 for none."""
    batch, channels, height, width = node.get_input_shape(0)
    results = node.get_output_shape(0)[1]
    for tile, least in MIN_CHANNELS.items():
        tiles = batch * -(-height // tile) * -(-width // tile)
        if tiles >= MIN_TILES and channels * results >= least * (channels + results):
            return tile
    return 0


def _convolution_of(branch: Branch) -> str:
    """The name of the convolution to which a branch is added, with its bias or without."""
    node = branch.base.get_node()
    if node.get_type_name() == "Add":
        node = node.input_value(0).get_node()
    return str(node.get_name())


def _replace(node: Any, sample: Any, build: Any) -> None:
    weights = values_of(constant_behind(node.input_value(1)))
    kind = node.get_element_type()
    # In float32 even in a graph of half precision, so that the new weights are not rounded again.
    rewritten = as_type(build(as_type(sample, Type.f32), weights).output(0), kind)
    replace_node(node, rewritten.get_node())


def _on_halves(sample: Any, weights: np.ndarray) -> Any:
    parts = [
        ops.convolution(
            sample, constant(part), [1, 1], [1 - row, 1 - column], [row, column], [1, 1]
        )
        for (row, column), part in weights_of_halves(weights).items()
    ]
    return ops.depth_to_space(ops.concat(parts, 1), "blocks_first", 2)


def _winograd(node: Any, tile: int, branch: Branch | None) -> None:
    """Replace a convolution, and the first product of its branch, by products of tiles."""
    kind, shape = node.get_element_type(), list(node.get_input_shape(0))
    weights = transformed_weights(values_of(constant_behind(node.input_value(1))), tile)
    tiles = _tiles(as_type(node.input_value(0), Type.f32), tile)
    if branch is not None:
        product = ops.matmul(_transformed_down(branch, tile), tiles, False, False)
        low = _reshape(_pixels(product, shape, tile), (shape[0], branch.rank, -1))
        up = as_type(branch.up, Type.f32)
        change = _reshape(ops.matmul(up, low, False, False), tuple(branch.output.get_shape()))
        branch.total.input(branch.index).replace_source_output(as_type(change.output(0), kind))
    product = ops.matmul(constant(weights), tiles, False, False)
    rewritten = as_type(_pixels(product, shape, tile).output(0), kind)
    replace_node(node, rewritten.get_node())


def _transformed_down(branch: Branch, tile: int) -> Any:
    """The first factor in the form of transformed_weights: (side * side, rank, channels)."""
    both = ops.constant(kernel_matrix(tile))
    channels = list(branch.down.get_shape())[1]
    taps = _reshape(as_type(branch.down, Type.f32), (branch.rank, KERNEL * KERNEL, channels))
    flat = _reshape(_transpose(taps, (1, 0, 2)), (KERNEL * KERNEL, -1))
    return _reshape(ops.matmul(both, flat, False, False), (-1, branch.rank, channels))


def _tiles(sample: Any, tile: int) -> Any:
    """Transformed patches: (side * side, channels, tiles of all images)."""
    batch, channels, height, width = sample.get_shape()
    side = tile + KERNEL - 1
    down, across = -(-height // tile), -(-width // tile)
    if batch > 1:  # so that one product serves all images
        sample = _transpose(sample, (1, 0, 2, 3))
    planes = _reshape(sample, (1, channels * batch, height, width))
    ends = (down * tile + 1 - height, across * tile + 1 - width)
    planes = ops.pad(planes, _sizes((0, 0, 1, 1)), _sizes((0, 0, *ends)), "constant")
    patches = ops.extract_image_patches(planes, [side, side], [tile, tile], [1, 1], "valid")
    into = constant(tile_matrices(tile)[0])
    tiles = ops.matmul(into, _reshape(patches, (side * side, -1)), False, False)
    return _reshape(tiles, (side * side, channels, -1))


def _pixels(products: Any, shape: Sequence[int], tile: int) -> Any:
    """The images that products of tiles with weights make.

    Args:
      products: (side * side, results, tiles). shape: of the convolution's input.
    """
    batch, _, height, width = shape
    side, results = tile + KERNEL - 1, list(products.output(0).get_shape())[1]
    down, across = -(-height // tile), -(-width // tile)
    back = constant(tile_matrices(tile)[1])
    pixels = ops.matmul(back, _reshape(products, (side * side, -1)), False, False)
    pixels = _reshape(pixels, (tile, tile, results, batch, down, across))
    pixels = _reshape(
        _transpose(pixels, (3, 2, 4, 0, 5, 1)), (batch, results, down * tile, across * tile)
    )
    if (down * tile, across * tile) != (height, width):
        whole = _sizes((height, width))
        pixels = ops.slice(pixels, _sizes((0, 0)), whole, _sizes((1, 1)), _sizes((2, 3)))
    return pixels


def _sizes(values: tuple[int, ...]) -> Any:
    return ops.constant(np.array(values, np.int64))


def _reshape(value: Any, shape: tuple[int, ...]) -> Any:
    return ops.reshape(value, _sizes(shape), False)


def _transpose(value: Any, order: tuple[int, ...]) -> Any:
    return ops.transpose(value, _sizes(order))
