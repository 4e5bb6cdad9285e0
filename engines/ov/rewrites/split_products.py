"""A matrix product whose result is split becomes one product for each part.

That avoids copies, and lets OpenVINO fuse what follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset13 as ops

from sdexport.engines.ov.rewrites.nodes import as_type, constant, constant_behind, values_of


def rewrite_split(node: Any) -> bool:
    """Rewrite a split along the last axis of a product with constant weights, plus a constant.

    A LoRA adds a second product, whose factors are no constants; that is split as well.

    Returns: whether it was rewritten.
    """
    shape, total = node.get_input_shape(0), node.input_value(0).get_node()
    parts = [list(output.get_shape()) for output in node.outputs()]
    if not _is_used_once(total, "Add") or any(part[:-1] != list(shape)[:-1] for part in parts):
        return False
    product, bias = (total.input_value(i).get_node() for i in (0, 1))
    added = None
    if _is_used_once(product, "Add"):
        product, added = (product.input_value(i).get_node() for i in (0, 1))
        if not _is_product_of(added, shape[-1]):
            return False
    if not _is_used_once(product, "MatMul"):
        return False
    constants = [constant_behind(source) for source in (product.input_value(1), bias.output(0))]
    if any(node is None for node in constants):
        return False
    weights, offsets = map(values_of, constants)
    if weights.ndim != 2 or offsets.shape != (shape[-1],):
        return False
    transposed = product.get_attributes()["transpose_b"]
    axis = 0 if transposed else 1
    ends = np.cumsum([part[-1] for part in parts])[:-1]
    kind = total.get_element_type()
    factors = None if added is None else _parts_of(added.input_value(1), parts)
    for i, (output, weight, offset) in enumerate(
        zip(node.outputs(), np.split(weights, ends, axis), np.split(offsets, ends), strict=True)
    ):
        part = ops.matmul(
            product.input_value(0),
            as_type(constant(weight).output(0), kind),
            product.get_attributes()["transpose_a"],
            transposed,
        )
        if added is not None and factors is not None:
            part = ops.add(part, ops.matmul(added.input_value(0), factors.output(i), False, False))
        output.replace(ops.add(part, as_type(constant(offset).output(0), kind)).output(0))
    return True


def _is_used_once(node: Any, type_name: str) -> bool:
    """Whether it is a node of that type whose output one other reads."""
    return node.get_type_name() == type_name and len(node.output(0).get_target_inputs()) == 1


def _is_product_of(node: Any, width: int) -> bool:
    """Whether it is a plain product, read once, whose second factor has `width` columns."""
    if not _is_used_once(node, "MatMul"):
        return False
    attributes = node.get_attributes()
    return (
        not (attributes["transpose_a"] or attributes["transpose_b"])
        and list(node.get_input_shape(1))[-1] == width
    )


def _parts_of(matrix: Any, parts: list[list[int]]) -> Any:
    """A node whose outputs are the columns of a matrix for each part."""
    widths = [part[-1] for part in parts]
    return ops.variadic_split(
        matrix, ops.constant(np.int64(-1)), ops.constant(np.array(widths, np.int64))
    )
