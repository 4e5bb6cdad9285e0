"""Arithmetic in 8 bits where an OpenVINO model has just normalised its numbers.

A normalised value is a scale and a shift, which are weights, of a number that is seldom further
than a few standard deviations from zero. That gives its range without any data to calibrate with.
So convolutions and products of such values (and of their SiLU) are quantised, activations to 256
steps of one range, weights to 255 a result; OpenVINO computes them with 8-bit instructions. What
comes from anywhere else, such as an attention or a sum of layers, stays as it is.

Of a convolution's input each channel is divided by its own range first, and the weights are
multiplied by it: the channels share the 256 steps fairly (SmoothQuant, arXiv 2211.10438).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import Type
from openvino import opset13 as ops

from sdexport.engines.ov.rewrites.convolutions import as_type, constant, constant_behind, values_of

DEVIATIONS = 8.0
"""How far from its mean a normalised number may be, in standard deviations; beyond, it is cut off.
With a range for each channel 8 was better than 6 on the embedded model (docs/performance.md)."""
MIN_CHANNELS = 32
"""Narrower convolutions gain nothing, and the last one gives the picture's colours."""
LEAST_RANGE = 1e-3
"""The smallest range of a channel, of the largest one."""
LOWEST_SILU = -0.2784645, -1.2784645
"""The least value of x / (1 + exp(-x)), and where it is."""

Range = tuple[np.ndarray, np.ndarray]


def quantize(model: Any) -> dict[str, int]:
    """Quantise what follows a normalisation; a model without convolutions is left alone.

    Args:
      model: an openvino.Model, before it is compiled; it is changed.
    Returns: how many nodes were quantised, by type.
    """
    counts = {"Convolution": 0, "MatMul": 0}
    nodes = model.get_ordered_ops()
    if not any(node.get_type_name() == "Convolution" for node in nodes):
        return counts
    steps: dict[tuple[str, int], Any] = {}  # quantised inputs of products, which often share one
    for node in nodes:
        name = node.get_type_name()
        if name not in counts or (weights := _weights_behind(node.input_value(1))) is None:
            continue
        if name == "Convolution" and min(weights.shape[:2]) < MIN_CHANNELS:
            continue
        if name == "MatMul" and (weights.ndim != 2 or node.get_attributes()["transpose_a"]):
            continue
        source = node.input_value(0)
        found = _range(source.get_node())
        if found is None or (name == "Convolution" and len(found[0]) != weights.shape[1]):
            continue
        if name == "Convolution":
            size = _shares(found)
            even = ops.multiply(as_type(source, Type.f32), constant(_along_channels(1 / size)))
            sample = _steps(even.output(0), *(bound / size for bound in found))
            weights = weights * _along_channels(size)
            axes: tuple[int, ...] = (1, 2, 3)
        else:
            if _key(source) not in steps:
                steps[_key(source)] = _steps(source, *found)
            sample = steps[_key(source)]
            axes = (1,) if node.get_attributes()["transpose_b"] else (0,)
        kind = source.get_element_type()
        for i, value in enumerate((sample, _weights(weights, axes))):
            node.input(i).replace_source_output(as_type(value.output(0), kind))
        counts[name] += 1
    if any(counts.values()):
        model.validate_nodes_and_infer_types()
    return counts


def _weights_behind(value: Any) -> np.ndarray | None:
    """Constant weights as float32, also those held in 8 bits with a scale; else None."""
    held = constant_behind(value)
    if held is not None:
        return values_of(held).astype(np.float32, copy=False)
    product = _past(value.get_node())
    if product.get_type_name() != "Multiply":
        return None
    whole = _past(product.input_value(0).get_node())
    scale = product.input_value(1)
    held = constant_behind(_past(scale.get_node()).output(0))
    if held is None or whole.get_type_name() != "Constant":
        return None
    each = values_of(held).reshape(list(scale.get_shape()))
    weights: np.ndarray = whole.get_data(dtype=np.float32) * each.astype(np.float32)
    return weights


def _range(node: Any) -> Range | None:
    """Least and greatest value of each channel behind a normalisation, or None."""
    node = _past(node)
    inner = _before_silu(node)
    found = _affine(node if inner is None else _past(inner))
    if found is None:
        return None
    scale, shift = found
    low, high = shift - DEVIATIONS * np.abs(scale), shift + DEVIATIONS * np.abs(scale)
    if inner is None:
        return low, high
    least, at = LOWEST_SILU
    ends = _silu(low), _silu(high)
    return np.where((low < at) & (at < high), least, np.minimum(*ends)), np.maximum(*ends)


def _past(node: Any) -> Any:
    """The node behind those that change no number but its place and type."""
    while node.get_type_name() in ("Transpose", "Reshape", "Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    return node


def _before_silu(node: Any) -> Any:
    """x where a node is x * sigmoid(x), else None."""
    if node.get_type_name() == "Swish":
        return node.input_value(0).get_node()
    if node.get_type_name() != "Multiply":
        return None
    for one, other in ((0, 1), (1, 0)):
        inner, gate = node.input_value(one).get_node(), node.input_value(other).get_node()
        if gate.get_type_name() == "Sigmoid" and _same(gate.input_value(0), node.input_value(one)):
            return inner
    return None


def _same(one: Any, other: Any) -> bool:
    return _key(one) == _key(other)


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()


def _affine(node: Any) -> Range | None:
    """Scale and shift of each channel of a normalised value, or None if the node gives none."""
    if node.get_type_name() == "GroupNormalization":
        given = [node.input_value(1), node.input_value(2)]
    elif node.get_type_name() == "Add":
        product = node.input_value(0).get_node()
        if product.get_type_name() != "Multiply":
            return None
        if _past(product.input_value(0).get_node()).get_type_name() != "MVN":
            return None
        given = [product.input_value(1), node.input_value(1)]
    else:
        return None
    held = [constant_behind(value) for value in given]
    if any(one is None for one in held):
        return None
    scale, shift = (values_of(one).astype(np.float64).ravel() for one in held)
    return scale, shift


def _silu(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = x / (1 + np.exp(-np.clip(x, -80, 80)))
    return found


def _shares(found: Range) -> np.ndarray:
    """The range of each channel, the largest being one."""
    sizes = np.maximum(np.abs(found[0]), np.abs(found[1]))
    largest = max(float(sizes.max()), np.finfo(np.float32).tiny)
    shares: np.ndarray = np.maximum(sizes / largest, LEAST_RANGE)
    return shares


def _along_channels(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(1, -1, 1, 1)


def _steps(value: Any, low: np.ndarray, high: np.ndarray) -> Any:
    """The value in 256 steps from its least to its greatest."""
    ends = [constant(np.array(end, np.float32)) for end in (low.min(), high.max())] * 2
    return ops.fake_quantize(as_type(value, Type.f32), *ends, 256)


def _weights(weights: np.ndarray, axes: tuple[int, ...]) -> Any:
    """Weights in 255 steps, in 8 bits; `axes` share a scale."""
    scale = np.maximum(np.abs(weights).max(axes, keepdims=True) / 127, np.finfo(np.float32).tiny)
    whole = np.rint(weights / scale).astype(np.int8)
    return ops.multiply(ops.convert(constant(whole), "f32"), constant(scale))
