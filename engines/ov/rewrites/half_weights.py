"""Weights of convolutions and products as constants of 16 bits.

Where a model is computed in bfloat16, float32 weights are rounded to it. OpenVINO would round them
in the same way when it compiles: the results are the same bit for bit, the constants take half the
room, in memory and in files, and the compilation has a step less. Weights that are stored in
float16 are marked, so that OpenVINO does not make a float32 copy of each.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

from sdexport.engines.ov.rewrites.nodes import as_type, constant
from sdexport.engines.ov.scratch import current

SMALLEST = 4096
"""Elements of a weight from which on it is rounded; smaller ones gain nothing."""
DECOMPRESSION = "decompression_0"
"""OpenVINO's mark of a Convert node that it must not compute when it compiles."""
_PART, _BLOCK = 2**20, 2**15
"""Elements for one thread at a time, and at once; a block stays in the processor's cache."""
_WITH_WEIGHTS = ("Convolution", "GroupConvolution", "MatMul")


def halve_weights(model: Any, *, in_bfloat16: bool) -> int:
    """Let OpenVINO read weights of 16 bits as they are stored.

    Args:
      model: an openvino.Model; it is changed, and its float16 values become float32, which
        OpenVINO would do as well, with a copy of each weight. Graphs in bfloat16 stay as they are.
      in_bfloat16: whether it will be computed in bfloat16: float32 weights are then rounded.
    Returns: how many constants were changed.
    """
    done: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        for port in node.inputs() if node.get_type_name() in _WITH_WEIGHTS else ():
            weights = port.get_source_output().get_node()
            if not _is_large(weights):
                continue
            name = weights.get_name()
            if name not in done:
                is_half = weights.get_element_type() != Type.f32
                half = weights if is_half else _rounded(weights) if in_bfloat16 else None
                done[name] = None if half is None else _widened(half)
            if done[name] is not None:
                port.replace_source_output(done[name].output(0))
    _compute_in_float32(model)
    return sum(node is not None for node in done.values())


def _compute_in_float32(model: Any) -> None:
    """Make float32 of every float16 value but the weights, which are widened where used."""
    changed = False
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Constant", "Convert") or node.get_element_type() != Type.f16:
            continue
        wide = as_type(node.input_value(0), Type.f32) if kind == "Convert" else None
        for target in node.output(0).get_target_inputs():
            if DECOMPRESSION in target.get_node().get_rt_info():
                continue
            if wide is None:
                wide = constant(node.get_data(dtype=np.float32)).output(0)
            target.replace_source_output(wide)
            changed = True
    if changed:
        model.validate_nodes_and_infer_types()


def _is_large(node: Any) -> bool:
    """Whether a node is a constant of many floats in two or more dimensions."""
    if node.get_type_name() != "Constant":
        return False
    shape = list(node.get_output_shape(0))
    return (
        node.get_element_type() in (Type.f32, Type.f16)
        and len(shape) > 1
        and bool(np.prod(shape) >= SMALLEST)
    )


def _widened(constant: Any) -> Any:
    """A constant as float32, which OpenVINO takes as it is stored."""
    node = ops.convert(constant, Type.f32)
    node.get_rt_info()[DECOMPRESSION] = ""
    return node


def _rounded(node: Any) -> Any:
    """A bfloat16 Constant of the values of a float32 one; None if they are not all finite."""
    values, kind, scratch = node.data, np.dtype(np.uint16), current()
    shape = values.shape
    target = np.empty(shape, kind) if scratch is None else scratch.empty(shape, kind)
    source, result = values.reshape(-1).view(np.uint32), target.reshape(-1)
    parts = [slice(i, i + _PART) for i in range(0, source.size, _PART)]
    with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
        finite = all(pool.map(lambda part: _round(source[part], result[part]), parts))
    if not finite:
        return None
    tensor = ov.Tensor(target, ov.Shape(list(shape)), Type.bf16)
    return ops.constant(tensor, shared_memory=scratch is not None)


def _round(bits: np.ndarray, result: np.ndarray) -> bool:
    """Round float32 to the nearest bfloat16, ties to even, as processors do.

    OpenVINO's own conversion rounds otherwise (2026.4), and NumPy has none.

    Args:
      bits: uint32, those of float32 values. result: uint16, those of bfloat16 values.
    Returns: whether the values are all finite; else the result has no meaning.
    """
    for start in range(0, bits.size, _BLOCK):
        part = bits[start : start + _BLOCK]
        if not np.isfinite(part.view(np.float32)).all():
            return False
        work = part >> np.uint32(16)
        work &= np.uint32(1)
        work += np.uint32(0x7FFF)
        work += part
        work >>= np.uint32(16)
        result[start : start + _BLOCK] = work
    return True
