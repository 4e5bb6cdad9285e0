"""8-bit arithmetic where an OpenVINO model has just normalised its values.

A normalised value is a number that is seldom further than a few standard deviations from zero,
times a scale plus a shift, which are weights. That gives its range without calibration data. So
convolutions and products of such values (and of their SiLU) are quantised, activations to 256
steps of one range, weights to 255 steps for each output channel; OpenVINO computes them with 8-bit
instructions. All other inputs, such as an attention's or a residual sum's, stay as they are.

Each channel of a convolution's input is divided by its own range first, and the weights are
multiplied by it, so that all channels use the 256 steps well (SmoothQuant, arXiv 2211.10438).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import Type
from openvino import opset13 as ops

from sdexport.engines.ov.rewrites.nodes import as_type, constant, constant_behind, values_of

DEVIATIONS = 8.0
"""Half the range of a normalised number, in standard deviations; values beyond it are clipped.
With a range for each channel 8 was better than 6 on the demo model (docs/performance.md)."""
MIN_CHANNELS = 32
"""Narrower convolutions do not become faster, and the last one computes the colours."""
LEAST_RANGE = 1e-3
"""The smallest range of a channel, relative to the largest one."""
LOWEST_SILU = -0.2784645, -1.2784645
"""The minimum of x / (1 + exp(-x)), and the x at which it is reached."""

Range = tuple[np.ndarray, np.ndarray]
"""Least and greatest value of each channel."""


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
    products: dict[tuple[str, int], Any] = {}  # quantised inputs of products, which often share one
    for node in nodes:
        name = node.get_type_name()
        if name not in counts:
            continue
        weights = _weights_behind(node.input_value(1))
        if weights is None or not _can_quantize(node, weights):
            continue
        source = node.input_value(0)
        bounds = _range(source.get_node())
        if bounds is None or (name == "Convolution" and len(bounds[0]) != weights.shape[1]):
            continue
        if name == "Convolution":
            replacements = _quantized_convolution(source, weights, bounds)
        else:
            if _key(source) not in products:
                products[_key(source)] = _steps(source, *bounds)
            axes = (1,) if node.get_attributes()["transpose_b"] else (0,)
            replacements = products[_key(source)], _weights(weights, axes)
        kind = source.get_element_type()
        for i, value in enumerate(replacements):
            node.input(i).replace_source_output(as_type(value.output(0), kind))
        counts[name] += 1
    if any(counts.values()):
        model.validate_nodes_and_infer_types()
    return counts


def _can_quantize(node: Any, weights: np.ndarray) -> bool:
    if node.get_type_name() == "Convolution":
        return bool(min(weights.shape[:2]) >= MIN_CHANNELS)
    transposed: bool = node.get_attributes()["transpose_a"]
    return weights.ndim == 2 and not transposed


def _quantized_convolution(source: Any, weights: np.ndarray, bounds: Range) -> tuple[Any, Any]:
    """Input and weights of a convolution, both quantised."""
    size = _relative_ranges(bounds)
    even = ops.multiply(as_type(source, Type.f32), constant(_along_channels(1 / size)))
    low, high = (bound / size for bound in bounds)
    return _steps(even.output(0), low, high), _weights(weights * _along_channels(size), (1, 2, 3))


def _weights_behind(value: Any) -> np.ndarray | None:
    """Constant weights as float32, also 8-bit ones with a scale; else None."""
    node = constant_behind(value)
    if node is not None:
        return values_of(node).astype(np.float32, copy=False)
    product = _past(value.get_node())
    if product.get_type_name() != "Multiply":
        return None
    integers = _past(product.input_value(0).get_node())
    scale = product.input_value(1)
    node = constant_behind(_past(scale.get_node()).output(0))
    if node is None or integers.get_type_name() != "Constant":
        return None
    scales = values_of(node).reshape(list(scale.get_shape()))
    weights: np.ndarray = integers.get_data(dtype=np.float32) * scales.astype(np.float32)
    return weights


def _range(node: Any) -> Range | None:
    """The range of each channel after a normalisation (and SiLU), or None."""
    node = _past(node)
    inner = _before_silu(node)
    scale_shift = _scale_and_shift(node if inner is None else _past(inner))
    if scale_shift is None:
        return None
    scale, shift = scale_shift
    low, high = shift - DEVIATIONS * np.abs(scale), shift + DEVIATIONS * np.abs(scale)
    if inner is None:
        return low, high
    least, at = LOWEST_SILU
    ends = _silu(low), _silu(high)
    return np.where((low < at) & (at < high), least, np.minimum(*ends)), np.maximum(*ends)


def _past(node: Any) -> Any:
    """The first node upstream that does more than move or convert numbers."""
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


def _scale_and_shift(node: Any) -> Range | None:
    """Scale and shift of each channel of a normalisation; None for any other node."""
    if node.get_type_name() == "GroupNormalization":
        values = [node.input_value(1), node.input_value(2)]
    elif node.get_type_name() == "Add":
        product = node.input_value(0).get_node()
        if product.get_type_name() != "Multiply":
            return None
        if _past(product.input_value(0).get_node()).get_type_name() != "MVN":
            return None
        values = [product.input_value(1), node.input_value(1)]
    else:
        return None
    constants = [constant_behind(value) for value in values]
    if any(each is None for each in constants):
        return None
    scale, shift = (values_of(each).astype(np.float64).ravel() for each in constants)
    return scale, shift


def _silu(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = x / (1 + np.exp(-np.clip(x, -80, 80)))
    return y


def _relative_ranges(bounds: Range) -> np.ndarray:
    """The range of each channel, relative to the largest one."""
    sizes = np.maximum(np.abs(bounds[0]), np.abs(bounds[1]))
    largest = max(float(sizes.max()), np.finfo(np.float32).tiny)
    relative: np.ndarray = np.maximum(sizes / largest, LEAST_RANGE)
    return relative


def _along_channels(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(1, -1, 1, 1)


def _steps(value: Any, low: np.ndarray, high: np.ndarray) -> Any:
    """The value in 256 steps from its least to its greatest."""
    ends = [constant(np.array(end, np.float32)) for end in (low.min(), high.max())] * 2
    return ops.fake_quantize(as_type(value, Type.f32), *ends, 256)


def _weights(weights: np.ndarray, axes: tuple[int, ...]) -> Any:
    """Weights in 255 steps, in 8 bits; the elements along `axes` have one scale in common."""
    scale = np.maximum(np.abs(weights).max(axes, keepdims=True) / 127, np.finfo(np.float32).tiny)
    integers = np.rint(weights / scale).astype(np.int8)
    return ops.multiply(ops.convert(constant(integers), "f32"), constant(scale))
