"""Branches of low rank in an OpenVINO model: what a layer adds that takes the factors of a LoRA.

    x down up          of a linear layer
    up (down * x)      of a convolution, with the planes of its taps shifted by a constant kernel

Both factors are inputs. sdexport.graphs.lora_branches writes these graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEAST_ROWS = {"f32": 3.0, "bf16": 0.75, "convolution": 0.75}
"""Rows for each column of a weight, or pixels for each channel, from which on it is cheaper to add
the product of the factors to the weight. OpenVINO then arranges that anew in each call, and it
takes as much memory again."""
_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Branch:
    """A branch of low rank, and where it is.

    total: the node that adds it. index: of the input of `total` that is the branch.
    low: the product of the layer's input and the first factor.
    down, up: outputs of nodes, the factors. kernel: of a convolution, (height, width); () of a
    linear layer.
    """

    total: Any
    index: int
    low: Any
    down: Any
    up: Any
    kernel: tuple[int, ...]

    @property
    def output(self) -> Any:
        """What is added."""
        return self.total.input_value(self.index)

    @property
    def base(self) -> Any:
        """What it is added to."""
        return self.total.input_value(1 - self.index)

    @property
    def source(self) -> Any:
        """The layer's input."""
        if self.kernel:
            return self.low.input_value(1).get_node().input_value(0)
        return self.low.input_value(0)

    @property
    def rank(self) -> int:
        """Columns of `down` for each tap."""
        return int(list(self.up.get_shape())[2 if self.kernel else 1])

    @property
    def is_for_all_rows(self) -> bool:
        """Whether all rows of the batch have the same factors."""
        rows, *_ = self.up.get_shape()
        return bool(rows == 1)


def branches_of(model: Any) -> list[Branch]:
    """The branches of a model whose shapes are all fixed."""
    found = (_branch_at(node) for node in model.get_ordered_ops())
    return [branch for branch in found if branch is not None]


def _branch_at(total: Any) -> Branch | None:
    for index in (1, 0) if total.get_type_name() == "Add" else ():
        product = _past_reshapes(total.input_value(index))
        if not _is_product(product):
            continue
        left, right = product.input_value(0), product.input_value(1)
        low = _past_reshapes(left)
        if _is_factor(right) and _is_product(low) and _is_factor(low.input_value(1)):
            return Branch(total, index, low, low.input_value(1), right, ())
        if _is_factor(left):
            return _of_convolution(total, index, left, _past_reshapes(right))
    return None


def _of_convolution(total: Any, index: int, up: Any, low: Any) -> Branch | None:
    kernel: tuple[int, ...] = (1, 1)
    if low.get_type_name() == "Convolution":
        kernel = tuple(list(low.get_input_shape(1))[2:])
        low = _past_reshapes(low.input_value(0))
    if not (_is_product(low) and _is_factor(low.input_value(0))):
        return None
    flat = low.input_value(1).get_node()
    if flat.get_type_name() != "Reshape" or len(flat.get_input_shape(0)) != 4:
        return None
    return Branch(total, index, low, low.input_value(0), up, kernel)


def _past_reshapes(value: Any) -> Any:
    """The first node upstream that does more than change the shape."""
    node = value.get_node()
    while node.get_type_name() in _RESHAPES:
        node = node.input_value(0).get_node()
    return node


def _is_product(node: Any) -> bool:
    """Whether it is a product of matrices as they are."""
    if node.get_type_name() != "MatMul":
        return False
    attributes = node.get_attributes()
    return not (attributes["transpose_a"] or attributes["transpose_b"])


def _is_factor(value: Any) -> bool:
    """Whether a value is an input of the model, in its type or another one."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Parameter")
