"""Convolutions by Winograd's tiles (winograd.transforms), as operators of ONNX, for any size.

A pixel's channels, those of all images of a batch, lie together, so that pixels are gathered in
whole rows: first all places of every tile, at the end the results of every tile in their order.
Tiles are computed some hundred at a time, which is enough for the products to run at full speed,
and keeps what lies between them small.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from sdexport.engines.winograd.transforms import tile_matrices, transformed_weights
from sdexport.graphs.onnx_nodes import Nodes

TILE = 4
_AT_ONCE = 512
"""Tiles, of all images of a batch."""


class Places:
    """Which pixels the tiles of images of one size take, and which of their results are whose.

    Args:
      nodes: where the operators that compute it from the image's shape are added.
      image: (N, C, H, W), of that size.
      taps: weights along an axis.
      scale: how many results there are for a pixel, along an axis.
    """

    def __init__(self, nodes: Nodes, image: str, taps: int, scale: int) -> None:
        add, scalar, vector = nodes.add, nodes.scalar, nodes.vector
        self._side, self._scale = TILE + taps - 1, scale
        self.size = add("Shape", [image], start=2)
        self.scaled = add("Mul", [self.size, scalar(scale)])
        self.pixels = add("ReduceProd", [self.size], keepdims=1)
        # A pixel of zeros before, and as many behind as the last tile may need.
        self.pads = vector(1, 1, 0, TILE, TILE, 0)
        padded_size = add("Add", [self.size, scalar(1 + TILE)])
        self.padded = add("ReduceProd", [padded_size], keepdims=1)
        self.padded_width = add("Gather", [padded_size, scalar(1)])
        counts = _ceil_div(nodes, self.size, scalar(TILE))
        tiles = add("ReduceProd", [counts], keepdims=0)
        batch = add("Squeeze", [add("Shape", [image], end=1)])
        most = add("Max", [add("Div", [scalar(_AT_ONCE), batch]), scalar(1)])
        turns = _ceil_div(nodes, tiles, most)
        at_once = _ceil_div(nodes, tiles, turns)
        grid = [add("Unsqueeze", [number, vector(0)]) for number in (turns, at_once)]
        by_turn = add("Concat", grid, axis=0)
        computed = add("ReduceProd", [by_turn], keepdims=1)
        self.results = add("Mul", [computed, scalar((scale * TILE) ** 2)])
        lacking = add("Concat", [vector(0), add("Sub", [computed, tiles])], axis=0)
        self.taken = self._taken(nodes, lacking, by_turn)
        self.given = self._given(nodes, counts, tiles, at_once)

    def _taken(self, nodes: Nodes, lacking: str, by_turn: str) -> str:
        """Rows of padded pixels, (turns, places * tiles at once); those too many take the first's.

        They are those of a kernel that begins a pixel before its result, in both directions.
        """
        add, scalar, vector = nodes.add, nodes.scalar, nodes.vector
        height, width = (add("Gather", [self.size, scalar(axis)]) for axis in (0, 1))
        tops, lefts = (add("Range", [scalar(0), n, scalar(TILE)]) for n in (height, width))
        tops = add("Unsqueeze", [add("Mul", [tops, self.padded_width]), vector(1)])
        corners = add("Reshape", [add("Add", [tops, lefts]), vector(-1)])
        corners = add("Reshape", [add("Pad", [corners, lacking]), by_turn])
        corners = add("Unsqueeze", [corners, vector(1)])
        down, right = np.divmod(np.arange(self._side**2, dtype=np.int64).reshape(-1, 1), self._side)
        inside = add("Mul", [nodes.constant(f"down.{self._side}", down), self.padded_width])
        inside = add("Add", [inside, nodes.constant(f"right.{self._side}", right)])
        return add("Reshape", [add("Add", [corners, inside]), vector(0, -1)])

    def _given(self, nodes: Nodes, counts: str, tiles: str, at_once: str) -> str:
        """Where each result lies in (turns, scale, scale, TILE, TILE, tiles at once), flat."""
        add, scalar, vector = nodes.add, nodes.scalar, nodes.vector
        scale = self._scale
        each = (scale * TILE) ** 2
        tile = add("Range", [scalar(0), tiles, scalar(1)])
        turn = add("Div", [tile, at_once])
        skipped = add("Mul", [add("Mul", [turn, scalar(each - 1)]), at_once])
        first = add("Reshape", [add("Add", [tile, skipped]), counts])
        order = np.arange(each, dtype=np.int64).reshape(scale, scale, TILE, TILE, 1, 1)
        inside = add("Mul", [nodes.constant(f"inside.{scale}", order), at_once])
        places = add("Transpose", [add("Add", [first, inside])], perm=[4, 2, 0, 5, 3, 1])
        places = add("Reshape", [places, add("Mul", [counts, scalar(scale * TILE)])])
        places = add("Slice", [places, vector(0, 0), self.scaled])
        return add("Reshape", [places, vector(-1)])


def _ceil_div(nodes: Nodes, number: str, each: str) -> str:
    more = nodes.add("Sub", [nodes.add("Add", [number, each]), nodes.scalar(1)])
    return nodes.add("Div", [more, each])


def by_tiles(
    nodes: Nodes,
    places: Places,
    image: str,
    kernels: Mapping[tuple[int, int], np.ndarray],
    bias: str | None,
    result: str,
) -> None:
    """Add a convolution whose results are as many times as large as the image as places has it.

    Args:
      places: of the image's size. image: (N, C, H, W). bias: (1, K, 1, 1).
      kernels: (K, C, taps, taps) for each result of a pixel, by its row and column among them. They
        begin a pixel before it, those of row or column 1 at it, as weights_of_halves has it.
    """
    add, vector = nodes.add, nodes.vector

    def shape(*parts: str) -> str:
        return add("Concat", list(parts), axis=0)

    rest = vector(-1)
    rows = add("Reshape", [image, shape(rest, places.pixels)])
    rows = add("Transpose", [rows], perm=[1, 0])
    rows = add("Reshape", [rows, shape(places.size, rest)])
    rows = add("Reshape", [add("Pad", [rows, places.pads]), shape(places.padded, rest)])
    body = _turn(nodes, places, rows, kernels, f"{result}.turn")
    found = add("Scan", [places.taken], body=body, num_scan_inputs=1)
    found = add("Reshape", [found, shape(places.results, rest)])
    rows = add("Gather", [found, places.given], axis=0)
    rows = add("Transpose", [rows], perm=[1, 0])
    back = shape(vector(-1, len(next(iter(kernels.values())))), places.scaled)
    if bias is None:
        add("Reshape", [rows, back], result)
    else:
        add("Add", [add("Reshape", [rows, back]), bias], result)


def _turn(
    nodes: Nodes,
    places: Places,
    rows: str,
    kernels: Mapping[tuple[int, int], np.ndarray],
    name: str,
) -> onnx.GraphProto:
    """The graph that computes some tiles: from numbers of rows to results for each kernel."""
    turn, taken = Nodes(name, nodes.constants), f"{name}.taken"
    add, vector = turn.add, turn.vector
    found = []
    for (row, column), weights in kernels.items():
        channels, taps = weights.shape[1:3]
        count = (TILE + taps - 1) ** 2
        pixels, products = tile_matrices(TILE, taps)
        tiles = transformed_weights(weights, TILE).transpose(0, 2, 1)
        moved = taken
        if row:
            moved = add("Add", [moved, places.padded_width])
        if column:
            moved = add("Add", [moved, turn.scalar(column)])
        some = add("Reshape", [add("Gather", [rows, moved], axis=0), vector(count, -1)])
        some = add("MatMul", [turn.constant(f"pixels.{taps}", pixels), some])
        some = add("Reshape", [some, vector(count, -1, channels)])
        some = add("MatMul", [some, turn.constant(f"{name}.{row}{column}", tiles)])
        some = add("Reshape", [some, vector(count, -1)])
        found.append(add("MatMul", [turn.constant(f"products.{taps}", products), some]))
    results = found[0] if len(found) == 1 else add("Concat", found, axis=0)
    return helper.make_graph(
        turn.made,
        name,
        [helper.make_tensor_value_info(taken, onnx.TensorProto.INT64, [None])],
        [helper.make_tensor_value_info(results, onnx.TensorProto.FLOAT, [None, None])],
    )
