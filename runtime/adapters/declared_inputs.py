"""What a graph of a denoiser for adapters declares, checked before anything relies on it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdexport.engines.messages import shown
from sdexport.engines.session import TensorSpec
from sdexport.runtime.adapters.ip_inputs import (
    BIAS,
    GROUPS,
    TOKENS,
    image_layers,
    is_row_input,
    weight_levels,
    weights_name,
    weights_shape,
)
from sdexport.runtime.adapters.lora_inputs import layer_shapes
from sdexport.runtime.models.components import (
    DOWN_RESIDUAL,
    IP_INPUT,
    LORA_INPUT,
    MID_RESIDUAL,
    MOST_LEVELS,
    T2I_RESIDUAL,
    level_dimensions,
)

_RESIDUAL = re.compile(rf"{MID_RESIDUAL}|({DOWN_RESIDUAL}|{T2I_RESIDUAL})\d{{1,3}}")


def check_adapter_inputs(specs: Sequence[TensorSpec], base: Sequence[TensorSpec]) -> None:
    """Check that a graph takes what the denoiser takes, inputs of adapters, and nothing else.

    Args:
      specs: the inputs of the graph. base: those of the denoiser's model.onnx.
    Raises: ValueError: another input, or one of another form.
    """
    declared = {spec.name: spec for spec in specs}
    for spec in base:
        found = declared.pop(spec.name, None)
        if found is None or _sizes(found) != _sizes(spec):
            raise ValueError(f"its input {spec.name:.80} is {found}, that of model.onnx {spec}")
    layer_shapes(specs)
    if image_layers(specs) and BIAS not in declared:
        raise ValueError(f"its input {BIAS} is missing")
    images = {weights_name(level): weights_shape(level) for level in weight_levels(specs)}
    images[BIAS] = (GROUPS, TOKENS)
    for spec in declared.values():
        if not _is_of_an_adapter(spec, images):
            raise ValueError(f"its input {spec.name:.80} is {shown(str(spec))}, of no adapter")


def _sizes(spec: TensorSpec) -> tuple[str, list[int | None]]:
    """Type and sizes, whatever the names of dynamic ones."""
    return spec.dtype, [size if isinstance(size, int) else None for size in spec.shape]


def _is_of_an_adapter(spec: TensorSpec, images: dict[str, tuple[int | str, ...]]) -> bool:
    if spec.name.startswith(LORA_INPUT) or is_row_input(spec.name):
        return True  # checked as pairs
    if spec.dtype != "float32":
        return False
    if spec.name.startswith(IP_INPUT):
        return images.get(spec.name) == spec.shape
    channels = spec.shape[1] if len(spec.shape) > 1 else 0
    maps = [("batch", channels, *level_dimensions(level)) for level in range(MOST_LEVELS)]
    is_map = isinstance(channels, int) and channels > 0 and spec.shape in maps
    return is_map and _RESIDUAL.fullmatch(spec.name) is not None
