"""Keys and values of images, put together to the inputs of a UNet's graph; see ip_inputs.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdexport.engines.session import TensorSpec
from sdexport.runtime.adapters.ip_inputs import (
    BIAS,
    EXCLUDED,
    KEY,
    VALUE,
    image_layers,
    input_name,
    weight_levels,
    weights_name,
)
from sdexport.runtime.images.attention_masks import attention_mask
from sdexport.runtime.models.components import positions_dimension


@dataclass(frozen=True)
class ImageGroup:
    """What one attention to images takes.

    keys, values: by layer, (rows, tokens, width) float32.
    scales: by layer; what is not listed has 0.
    mask: (height, width) float32, where the images have an effect; None for everywhere.
    """

    keys: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    scales: Mapping[str, float]
    mask: np.ndarray | None = None


def group_inputs(
    specs: Sequence[TensorSpec], groups: Sequence[ImageGroup], sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The inputs of a graph for some groups, one or more.

    Args:
      specs: all inputs of the graph.
      groups: with the same number of rows.
      sizes: of named dimensions; see expected_calls.level_sizes.
    """
    layers = image_layers(specs)
    counts = [next(iter(group.keys.values())).shape[1] for group in groups]
    bias = np.zeros((len(groups), max(counts)), np.float32)
    for row, count in zip(bias, counts, strict=True):
        row[count:] = EXCLUDED
    inputs = {BIAS: bias}
    for layer in layers:
        keys = [group.keys[layer.name] for group in groups]
        values = [
            group.values[layer.name] * np.float32(group.scales.get(layer.name, 0.0))
            for group in groups
        ]
        inputs[input_name(layer.name, KEY)] = _stacked(keys, max(counts))
        inputs[input_name(layer.name, VALUE)] = _stacked(values, max(counts))
    for level in weight_levels(specs):
        count = sizes[positions_dimension(level)]
        inputs[weights_name(level)] = np.stack([_weights(group.mask, count) for group in groups])
    return inputs


def no_images(
    specs: Sequence[TensorSpec], rows: int, sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The inputs with which the graph computes what it does without images."""
    zeros = {
        layer.name: np.zeros((rows, 1, layer.width), np.float32) for layer in image_layers(specs)
    }
    return group_inputs(specs, [ImageGroup(zeros, zeros, {})], sizes)


def _stacked(arrays: Sequence[np.ndarray], tokens: int) -> np.ndarray:
    """(rows, groups, tokens, width), with zeros where a group has fewer tokens."""
    filled = [np.pad(each, ((0, 0), (0, tokens - each.shape[1]), (0, 0))) for each in arrays]
    return np.stack(filled, 1)


def _weights(mask: np.ndarray | None, positions: int) -> np.ndarray:
    return np.ones(positions, np.float32) if mask is None else attention_mask(mask, positions)
