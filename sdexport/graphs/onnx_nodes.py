"""Operators of an ONNX graph, written one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper


class Nodes:
    """Nodes that stand for one node of a graph; each is named for what it gives.

    Args:
      prefix: how the names of what they give begin.
      constants: tensors of the graph, by name; constants are added there, once for each name.
    """

    def __init__(self, prefix: str, constants: dict[str, Any]) -> None:
        self.made: list[Any] = []
        self._prefix = prefix
        self.constants = constants

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node of one output. Returns: the name of what it gives."""
        output = output or f"{self._prefix}.{kind}.{len(self.made)}"
        self.made.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        """Returns: the name itself."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def vector(self, *numbers: int) -> str:
        """Integers, int64."""
        return self.constant(f"vector{numbers}", np.array(numbers, np.int64))

    def scalar(self, number: int) -> str:
        """An integer, int64."""
        return self.constant(f"scalar({number})", np.array(number, np.int64))
