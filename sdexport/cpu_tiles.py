"""3x3 convolutions by Winograd's tiles (engines.winograd), as operators of ONNX, for any size.

A pixel's channels, those of all images of a batch, lie together, so that pixels are gathered in
whole rows: first the 36 places of every tile, at the end the results of every tile in their order.
Tiles are computed some hundred at a time, which is enough for the products to run at full speed,
and keeps what lies between them small.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from engines.winograd import tile_matrices, transformed_weights
from sdexport.onnx_nodes import Nodes

TILE = 4
_SIDE = TILE + 2
_PLACES = _SIDE**2
_RESULTS = TILE**2
_AT_ONCE = 512
"""Tiles, of all images of a batch."""


class Places:
    """Which pixels the tiles of images of one size take, and which of their results are whose.

    Args:
      nodes: where the operators that compute it from the image's shape are added.
      image: (N, C, H, W), of that size.
    """

    def __init__(self, nodes: Nodes, image: str) -> None:
        add, scalar, vector = nodes.add, nodes.scalar, nodes.vector
        self.size = add("Shape", [image], start=2)
        self.pixels = add("ReduceProd", [self.size], keepdims=1)
        # A pixel of zeros before, and as many behind as the last tile may need.
        self.pads = vector(1, 1, 0, TILE, TILE, 0)
        self.padded = add("ReduceProd", [add("Add", [self.size, scalar(1 + TILE)])], keepdims=1)
        counts = _ceil_div(nodes, self.size, scalar(TILE))
        tiles = add("ReduceProd", [counts], keepdims=0)
        batch = add("Squeeze", [add("Shape", [image], end=1)])
        most = add("Max", [add("Div", [scalar(_AT_ONCE), batch]), scalar(1)])
        turns = _ceil_div(nodes, tiles, most)
        at_once = _ceil_div(nodes, tiles, turns)
        grid = [add("Unsqueeze", [number, vector(0)]) for number in (turns, at_once)]
        by_turn = add("Concat", grid, axis=0)
        computed = add("ReduceProd", [by_turn], keepdims=1)
        self.results = add("Mul", [computed, scalar(_RESULTS)])
        lacking = add("Concat", [vector(0), add("Sub", [computed, tiles])], axis=0)
        self.taken = self._taken(nodes, lacking, by_turn)
        self.given = self._given(nodes, counts, tiles, at_once)

    def _taken(self, nodes: Nodes, lacking: str, by_turn: str) -> str:
        """Rows of padded pixels, (turns, 36 * tiles at once); tiles too many take the first's."""
        add, scalar, vector = nodes.add, nodes.scalar, nodes.vector
        height, width = (add("Gather", [self.size, scalar(axis)]) for axis in (0, 1))
        padded_width = add("Add", [width, scalar(1 + TILE)])
        tops, lefts = (add("Range", [scalar(0), n, scalar(TILE)]) for n in (height, width))
        tops = add("Unsqueeze", [add("Mul", [tops, padded_width]), vector(1)])
        corners = add("Reshape", [add("Add", [tops, lefts]), vector(-1)])
        corners = add("Reshape", [add("Pad", [corners, lacking]), by_turn])
        corners = add("Unsqueeze", [corners, vector(1)])
        down, right = np.divmod(np.arange(_PLACES).reshape(-1, 1), _SIDE)
        inside = add("Mul", [nodes.constant("places.down", down), padded_width])
        inside = add("Add", [inside, nodes.constant("places.right", right)])
        return add("Reshape", [add("Add", [corners, inside]), vector(0, -1)])

    def _given(self, nodes: Nodes, counts: str, tiles: str, at_once: str) -> str:
        """Where each pixel's result lies in (turns, 16, tiles at once), (H * W)."""
        add, scalar, vector = nodes.add, nodes.scalar, nodes.vector
        tile = add("Range", [scalar(0), tiles, scalar(1)])
        turn = add("Div", [tile, at_once])
        skipped = add("Mul", [add("Mul", [turn, scalar(_RESULTS - 1)]), at_once])
        first = add("Reshape", [add("Add", [tile, skipped]), counts])
        inside = nodes.constant("places.inside", np.arange(_RESULTS).reshape(TILE, TILE, 1, 1))
        places = add("Add", [first, add("Mul", [inside, at_once])])
        places = add("Transpose", [places], perm=[2, 0, 3, 1])
        places = add("Reshape", [places, add("Mul", [counts, scalar(TILE)])])
        return add("Reshape", [add("Slice", [places, vector(0, 0), self.size]), vector(-1)])


def _ceil_div(nodes: Nodes, number: str, each: str) -> str:
    more = nodes.add("Sub", [nodes.add("Add", [number, each]), nodes.scalar(1)])
    return nodes.add("Div", [more, each])


def by_tiles(
    nodes: Nodes, places: Places, image: str, weights: np.ndarray, bias: str | None, result: str
) -> None:
    """Add a 3x3 convolution of stride 1, padded by 1.

    Args:
      places: of the image's size. image: (N, C, H, W). weights: (K, C, 3, 3). bias: (1, K, 1, 1).
    """
    add, vector = nodes.add, nodes.vector
    results, channels = weights.shape[:2]
    rest = vector(-1)

    def shape(*parts: str) -> str:
        return add("Concat", list(parts), axis=0)

    rows = add("Reshape", [image, shape(rest, places.pixels)])
    rows = add("Transpose", [rows], perm=[1, 0])
    rows = add("Reshape", [rows, shape(places.size, rest)])
    rows = add("Reshape", [add("Pad", [rows, places.pads]), shape(places.padded, rest)])

    pixels, products = tile_matrices(TILE)
    tiles = transformed_weights(weights, TILE).transpose(0, 2, 1)
    turn = Nodes(f"{result}.turn", nodes.constants)
    numbers = f"{result}.turn.taken"
    some = turn.add("Gather", [rows, numbers], axis=0)
    some = turn.add("Reshape", [some, vector(_PLACES, -1)])
    some = turn.add("MatMul", [nodes.constant("tiles.pixels", pixels), some])
    some = turn.add("Reshape", [some, vector(_PLACES, -1, channels)])
    some = turn.add("MatMul", [some, nodes.constant(f"{result}.tiles", tiles)])
    some = turn.add("Reshape", [some, vector(_PLACES, -1)])
    some = turn.add("MatMul", [nodes.constant("tiles.products", products), some])
    body = helper.make_graph(
        turn.made,
        f"{result}.turn",
        [helper.make_tensor_value_info(numbers, onnx.TensorProto.INT64, [None])],
        [helper.make_tensor_value_info(some, onnx.TensorProto.FLOAT, [_RESULTS, None])],
    )
    found = add("Scan", [places.taken], body=body, num_scan_inputs=1)
    found = add("Reshape", [found, shape(places.results, rest)])
    rows = add("Gather", [found, places.given], axis=0)
    rows = add("Transpose", [rows], perm=[1, 0])
    back = shape(vector(-1, results), places.size)
    if bias is None:
        add("Reshape", [rows, back], result)
    else:
        add("Add", [add("Reshape", [rows, back]), bias], result)
