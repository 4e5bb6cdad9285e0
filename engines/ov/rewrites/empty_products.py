"""Remove what a product with an empty matrix adds to: nothing.

The factors of a LoRA are inputs of any rank. Those of layers that no LoRA changes have rank 0: the
product is zero, and with it all that is made of it up to the addition to the layer's output.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_OF_FIRST = {"Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Convolution", "MatMul"}
"""Nodes whose output is zero, or empty, if their first input is."""


def remove_empty_products(model: Any, empty: Collection[str]) -> None:
    """Leave out additions of zeros, and inputs of which nothing is left.

    Args:
      model: an openvino.Model as it was read; it is changed.
      empty: the inputs without elements. The model does not have them any more.
    """
    empty = frozenset(empty)
    zeros: set[tuple[str, int]] = set()
    for node in model.get_ordered_ops() if empty else ():
        kind, sources = node.get_type_name(), node.input_values()
        are_zeros = [_key(source) in zeros for source in sources]
        if kind == "Parameter":
            is_zero = bool(empty.intersection(node.output(0).get_names()))
        elif kind == "Add" and any(are_zeros):
            other = sources[are_zeros.index(False)] if not all(are_zeros) else sources[0]
            _replace(node.output(0), other)
            is_zero = all(are_zeros)
        else:
            is_zero = any(are_zeros[: 2 if kind == "MatMul" else 1]) and kind in _OF_FIRST
        if is_zero:
            zeros.add(_key(node.output(0)))
    for parameter in model.get_parameters() if empty else ():
        if empty.intersection(parameter.output(0).get_names()):
            model.remove_parameter(parameter)


def _replace(output: Any, other: Any) -> None:
    """Let what reads an output read another one, which takes over its names."""
    names = output.get_names()
    output.replace(other)
    other.add_names(names)


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()
