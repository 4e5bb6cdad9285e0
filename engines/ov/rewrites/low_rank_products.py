"""Cheaper forms of the products of low rank that a LoRA adds to layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from openvino import opset13 as ops

from sdexport.engines.ov.rewrites.low_rank import LEAST_ROWS, Branch
from sdexport.engines.ov.rewrites.nodes import as_type, is_used_once, key_of


def merge_branches(branches: Sequence[Branch], *, in_bfloat16: bool) -> list[Branch]:
    """Add products of factors to weights where that makes a call cheaper.

    Args:
      branches: of one model whose shapes are all fixed, which is changed; it must be possible to
        compute what depends on the factors alone once for many calls.
    Returns: the other branches.
    """
    rest = []
    for branch in branches:
        layer = _layer_of(branch)
        if layer is None or _rows_for_each_column(branch, layer) < _least(branch, in_bfloat16):
            rest.append(branch)
        elif branch.kernel:
            _merge_convolution(branch, layer)
        else:
            _merge_product(branch, layer)
    return rest


def _least(branch: Branch, in_bfloat16: bool) -> float:
    return LEAST_ROWS["convolution" if branch.kernel else "bf16" if in_bfloat16 else "f32"]


def _layer_of(branch: Branch) -> Any:
    """The node of the layer, a product or a 1x1 convolution; None for others."""
    node = branch.base.get_node()
    if branch.kernel and is_used_once(node, "Add"):
        node = node.input_value(0).get_node()  # without its bias
    if not is_used_once(node, "Convolution" if branch.kernel else "MatMul"):
        return None
    if not branch.is_for_all_rows or key_of(node.input_value(0)) != key_of(branch.source):
        return None
    weight = list(node.get_input_shape(1))
    if not branch.kernel:
        return None if len(weight) != 2 or node.get_attributes()["transpose_a"] else node
    sides = [list(shape)[2:] for shape in (node.get_input_shape(0), node.get_output_shape(0))]
    return node if weight[2:] == [1, 1] and sides[0] == sides[1] else None


def _rows_for_each_column(branch: Branch, layer: Any) -> float:
    weight = list(layer.get_input_shape(1))[:2]
    size = math.prod(list(layer.get_output_shape(0)))
    outputs = list(branch.up.get_shape())[1 if branch.kernel else 2]
    return float(size / outputs / min(weight))


def _merge_product(branch: Branch, layer: Any) -> None:
    weight, up = layer.input_value(1), ops.squeeze(branch.up, ops.constant(np.int64(0)))
    if layer.get_attributes()["transpose_b"]:
        change = ops.matmul(up, branch.down, True, True)
    else:
        change = ops.matmul(branch.down, up, False, False)
    changed = ops.add(weight, as_type(change.output(0), weight.get_element_type()))
    layer.input(1).replace_source_output(changed.output(0))
    _leave_out(branch)


def _merge_convolution(branch: Branch, layer: Any) -> None:
    """Let a product take the place of a 1x1 convolution, whose weight must be a constant."""
    outputs, inputs = list(layer.get_input_shape(1))[:2]
    batch, *_ = layer.get_input_shape(0)
    shape = list(layer.get_output_shape(0))
    weight = _reshape(layer.input_value(1), (outputs, inputs))
    change = ops.matmul(
        ops.squeeze(branch.up, ops.constant(np.int64(0))), branch.down, False, False
    )
    changed = ops.add(weight, as_type(change.output(0), weight.get_element_type()))
    flat = _reshape(layer.input_value(0), (batch, inputs, -1))
    product = _reshape(ops.matmul(changed, flat, False, False), shape)
    layer.output(0).replace(product.output(0))
    _leave_out(branch)


def _leave_out(branch: Branch) -> None:
    """Let what reads the sum read the layer alone."""
    base = branch.base
    branch.total.output(0).replace(base)
    # the node lives as long as its Branch: it must not count as a reader of the layer
    branch.total.input(1 - branch.index).replace_source_output(branch.output)


def _reshape(value: Any, shape: Sequence[int]) -> Any:
    return ops.reshape(value, ops.constant(np.array(shape, np.int64)), False)
