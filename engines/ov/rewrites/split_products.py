"""A matrix product whose result is split becomes one product for each part.

That avoids copies, and lets OpenVINO fuse what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from openvino import opset13 as ops

from sdexport.engines.ov.rewrites.nodes import (
    as_type,
    constant,
    constant_behind,
    is_used_once,
    values_of,
)


def rewrite_split(node: Any) -> bool:
    """Rewrite a split along the last axis of a product with weights, plus a constant.

    A LoRA adds a second product, whose factors are no constants; that is split as well. Or it is
    added to the weights: then they are a sum.

    Returns: whether it was rewritten.
    """
    shape = list(node.get_input_shape(0))
    parts = [list(output.get_shape()) for output in node.outputs()]
    found = _summands_of(node.input_value(0), shape[-1])
    if found is None or any(part[:-1] != shape[:-1] for part in parts):
        return False
    product, bias, added = found
    attributes, kind = product.get_attributes(), product.get_element_type()
    widths = [part[-1] for part in parts]
    axis = 0 if attributes["transpose_b"] else 1
    weights = _parts_of(product.input_value(1), widths, axis, kind)
    offsets = _parts_of(bias, widths, 0, kind)
    factors = None if added is None else _parts_of(added.input_value(1), widths, 2, kind)
    for i, output in enumerate(node.outputs()):
        part = ops.add(
            ops.matmul(
                product.input_value(0),
                weights[i],
                attributes["transpose_a"],
                attributes["transpose_b"],
            ),
            offsets[i],
        )
        if added is not None and factors is not None:
            part = ops.add(part, ops.matmul(added.input_value(0), factors[i], False, False))
        output.replace(part.output(0))
    return True


def _summands_of(total: Any, width: int) -> tuple[Any, Any, Any] | None:
    """The product with the weights, the bias, and the product of a LoRA's factors or None.

    Returns: None if a value is another sum.
    """
    products, biases, added = [], [], []
    for value in _summands(total):
        node = value.get_node()
        if constant_behind(value) is not None and list(value.get_shape()) == [width]:
            biases.append(value)
        elif is_used_once(node, "MatMul") and len(node.get_input_shape(1)) == 2:
            products.append(node)
        elif _is_product_of(node, width):
            added.append(node)
        else:
            return None
    if (len(products), len(biases)) != (1, 1) or len(added) > 1:
        return None
    weights = products[0].input_value(1)
    if constant_behind(weights) is None and weights.get_node().get_type_name() != "Add":
        return None
    return products[0], biases[0], added[0] if added else None


def _summands(total: Any) -> list[Any]:
    """What is added up to a value that is read once, down to values that are no such sums."""
    node = total.get_node()
    if not is_used_once(node, "Add"):
        return [total]
    return [each for i in (0, 1) for each in _summands(node.input_value(i))]


def _is_product_of(node: Any, width: int) -> bool:
    """Whether it is a plain product, read once, whose second factor has rows of `width`."""
    if not is_used_once(node, "MatMul") or len(node.get_input_shape(1)) != 3:
        return False
    attributes = node.get_attributes()
    return (
        not (attributes["transpose_a"] or attributes["transpose_b"])
        and list(node.get_input_shape(1))[-1] == width
    )


def _parts_of(value: Any, widths: Sequence[int], axis: int, kind: Any) -> list[Any]:
    """The parts of a value along an axis; constants are split now."""
    node = constant_behind(value)
    if node is not None:
        parts = np.split(values_of(node), np.cumsum(widths)[:-1], axis)
        return [as_type(constant(part).output(0), kind) for part in parts]
    sizes = np.array(widths, np.int64)
    return list(
        ops.variadic_split(value, ops.constant(np.int64(axis)), ops.constant(sizes)).outputs()
    )
