"""Small operations on nodes of an OpenVINO model that all rewrites use."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import Type
from openvino import opset13 as ops

from sdexport.engines.ov.scratch import stored


def as_type(value: Any, kind: Any) -> Any:
    """The value (an Output) in an element type."""
    return value if value.get_element_type() == kind else ops.convert(value, kind).output(0)


def constant(values: np.ndarray) -> Any:
    """A Constant node that uses the memory of the array, or that of a copy in a scratch file."""
    return ops.constant(stored(values), shared_memory=True)


def constant_behind(source: Any) -> Any:
    """The Constant node of floats behind an output, with or without a Convert; else None."""
    node = source.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Constant" and node.get_element_type().is_real():
        return node
    return None


def values_of(node: Any) -> np.ndarray:
    """Values of a Constant node; float32 where NumPy does not have its type."""
    known = node.get_element_type() in (Type.f32, Type.f16)
    values: np.ndarray = node.data if known else node.get_data(dtype=np.float32)
    return values


def key_of(output: Any) -> tuple[str, int]:
    """What tells an output of a model's node from all others."""
    return output.get_node().get_name(), output.get_index()


def is_used_once(node: Any, type_name: str) -> bool:
    """Whether it is a node of that type whose output one other reads."""
    return node.get_type_name() == type_name and len(node.output(0).get_target_inputs()) == 1
