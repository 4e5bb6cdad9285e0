"""Winograd convolutions (winograd.transforms) as ONNX operators, for images of any size.

The image is transposed to (pixels, batch * channels), so that a tile is gathered as whole rows.
All tiles' row indices are computed first, and the results are gathered into their order at the
end. In between, a Scan computes about _TILES_PER_STEP tiles at a time: enough for the matrix
products to run at full speed, and few enough to keep intermediate results small.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from sdexport.engines.winograd.transforms import tile_matrices, transformed_weights
from sdexport.graphs.onnx_nodes import NodeBuilder

TILE = 4
_TILES_PER_STEP = 512
"""Counted over all images of a batch."""


class TileIndices:
    """Row indices of the pixels that tiles read, and of the results they produce, for one size.

    Args:
      builder: gets the operators that compute the indices from the image's shape.
      image: (N, C, H, W).
      taps: size of the kernel along an axis.
      scale: results per pixel along an axis: 2 if the convolution's input is the upsampled image.
    """

    def __init__(self, builder: NodeBuilder, image: ir.Value, taps: int, scale: int) -> None:
        add, scalar, vector = builder.add, builder.scalar, builder.vector
        self._side, self._scale = TILE + taps - 1, scale
        self.size = add("Shape", [image], start=2)
        self.scaled = add("Mul", [self.size, scalar(scale)])
        # One pixel of zeros before, and after the end as many as the last tile may need.
        self.pads = vector(1, 1, 0, TILE, TILE, 0)
        padded_size = add("Add", [self.size, scalar(1 + TILE)])
        self.padded = add("ReduceProd", [padded_size], keepdims=1)
        self.padded_width = add("Gather", [padded_size, scalar(1)])
        self.pixels = add("ReduceProd", [self.size], keepdims=1)
        counts = _ceil_div(builder, self.size, scalar(TILE))
        tiles = add("ReduceProd", [counts], keepdims=0)
        batch = add("Squeeze", [add("Shape", [image], end=1)])
        most = add("Max", [add("Div", [scalar(_TILES_PER_STEP), batch]), scalar(1)])
        steps = _ceil_div(builder, tiles, most)
        per_step = _ceil_div(builder, tiles, steps)
        grid = [add("Unsqueeze", [number, vector(0)]) for number in (steps, per_step)]
        by_step = add("Concat", grid, axis=0)
        computed = add("ReduceProd", [by_step], keepdims=1)
        self.results = add("Mul", [computed, scalar((scale * TILE) ** 2)])
        missing = add("Concat", [vector(0), add("Sub", [computed, tiles])], axis=0)
        self.read = self._read(builder, missing, by_step)
        self.order = self._order(builder, counts, tiles, per_step)

    def _read(self, builder: NodeBuilder, missing: ir.Value, by_step: ir.Value) -> ir.Value:
        """Rows of padded pixels, (steps, side**2 * tiles per step).

        They are those of a kernel that begins one pixel before its result, along both axes. The
        `missing` tiles that fill the last step up read the rows of the first tile.
        """
        add, scalar, vector = builder.add, builder.scalar, builder.vector
        height, width = (add("Gather", [self.size, scalar(axis)]) for axis in (0, 1))
        tops, lefts = (add("Range", [scalar(0), n, scalar(TILE)]) for n in (height, width))
        tops = add("Unsqueeze", [add("Mul", [tops, self.padded_width]), vector(1)])
        corners = add("Reshape", [add("Add", [tops, lefts]), vector(-1)])
        corners = add("Reshape", [add("Pad", [corners, missing]), by_step])
        corners = add("Unsqueeze", [corners, vector(1)])
        down, right = np.divmod(np.arange(self._side**2, dtype=np.int64).reshape(-1, 1), self._side)
        inside = add("Mul", [builder.constant(f"down.{self._side}", down), self.padded_width])
        inside = add("Add", [inside, builder.constant(f"right.{self._side}", right)])
        return add("Reshape", [add("Add", [corners, inside]), vector(0, -1)])

    def _order(
        self, builder: NodeBuilder, counts: ir.Value, tiles: ir.Value, per_step: ir.Value
    ) -> ir.Value:
        """Where each result lies in (steps, scale, scale, TILE, TILE, tiles per step), flat."""
        add, scalar, vector = builder.add, builder.scalar, builder.vector
        scale = self._scale
        each = (scale * TILE) ** 2
        tile = add("Range", [scalar(0), tiles, scalar(1)])
        step = add("Div", [tile, per_step])
        skipped = add("Mul", [add("Mul", [step, scalar(each - 1)]), per_step])
        first = add("Reshape", [add("Add", [tile, skipped]), counts])
        order = np.arange(each, dtype=np.int64).reshape(scale, scale, TILE, TILE, 1, 1)
        inside = add("Mul", [builder.constant(f"inside.{scale}", order), per_step])
        places = add("Transpose", [add("Add", [first, inside])], perm=[4, 2, 0, 5, 3, 1])
        places = add("Reshape", [places, add("Mul", [counts, scalar(scale * TILE)])])
        places = add("Slice", [places, vector(0, 0), self.scaled])
        return add("Reshape", [places, vector(-1)])


def _ceil_div(builder: NodeBuilder, number: ir.Value, each: ir.Value) -> ir.Value:
    more = builder.add("Sub", [builder.add("Add", [number, each]), builder.scalar(1)])
    return builder.add("Div", [more, each])


def winograd_convolution(
    builder: NodeBuilder,
    indices: TileIndices,
    image: ir.Value,
    kernels: Mapping[tuple[int, int], np.ndarray],
    bias: ir.Value | None,
) -> ir.Value:
    """Add a convolution of `image`, computed in tiles.

    Args:
      indices: for the image's size and the scale of the result.
      image: (N, C, H, W).
      kernels: (K, C, taps, taps) for each of a pixel's scale**2 results, by row and column among
        them. A kernel of row or column 0 begins one pixel before the result's, one of 1 at it, as
        those of winograd.transforms.weights_of_halves do.
      bias: (1, K, 1, 1).
    Returns: (N, K, scale * H, scale * W).
    """
    add, vector = builder.add, builder.vector

    def shape(*parts: ir.Value) -> ir.Value:
        return add("Concat", list(parts), axis=0)

    rest = vector(-1)
    rows = add("Reshape", [image, shape(rest, indices.pixels)])
    rows = add("Transpose", [rows], perm=[1, 0])
    rows = add("Reshape", [rows, shape(indices.size, rest)])
    rows = add("Reshape", [add("Pad", [rows, indices.pads]), shape(indices.padded, rest)])
    body = _step(builder, indices, rows, kernels)
    results = add("Scan", [indices.read], body=body, num_scan_inputs=1)
    results = add("Reshape", [results, shape(indices.results, rest)])
    rows = add("Gather", [results, indices.order], axis=0)
    rows = add("Transpose", [rows], perm=[1, 0])
    channels = len(next(iter(kernels.values())))
    result = add("Reshape", [rows, shape(vector(-1, channels), indices.scaled)])
    return result if bias is None else add("Add", [result, bias])


def _step(
    builder: NodeBuilder,
    indices: TileIndices,
    rows: ir.Value,
    kernels: Mapping[tuple[int, int], np.ndarray],
) -> ir.Graph:
    """The body of the Scan: row indices of some tiles to their results for each kernel."""
    name = f"{rows.name}.step"
    step = NodeBuilder(name, builder.graph)
    add, vector = step.add, step.vector
    read = ir.Value(
        name=f"{name}.read", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([None])
    )
    results = []
    for (row, column), weights in kernels.items():
        channels, taps = weights.shape[1:3]
        count = (TILE + taps - 1) ** 2
        pixels, products = tile_matrices(TILE, taps)
        tiles = transformed_weights(weights, TILE).transpose(0, 2, 1)
        moved = read
        if row:
            moved = add("Add", [moved, indices.padded_width])
        if column:
            moved = add("Add", [moved, step.scalar(column)])
        some = add("Reshape", [add("Gather", [rows, moved], axis=0), vector(count, -1)])
        some = add("MatMul", [step.constant(f"pixels.{taps}", pixels), some])
        some = add("Reshape", [some, vector(count, -1, channels)])
        some = add("MatMul", [some, step.constant(f"{name}.{row}{column}", tiles)])
        some = add("Reshape", [some, vector(count, -1)])
        results.append(add("MatMul", [step.constant(f"products.{taps}", products), some]))
    output = results[0] if len(results) == 1 else add("Concat", results, axis=0)
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, None])
    return ir.Graph([read], [output], nodes=step.nodes, name=name)
