"""The inputs of a UNet's graph that takes T2I-Adapters: a residual for each block on the way down.

The last one belongs to the block in the middle; adapters for SDXL have a feature for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sdexport.engines.session import TensorSpec
from sdexport.runtime.models.components import T2I_RESIDUAL, level_dimensions


def residual_name(index: int) -> str:
    """The input of a block's residual, counted from the first block."""
    return f"{T2I_RESIDUAL}{index}"


def is_t2i_input(name: str) -> bool:
    """Whether an input of a graph takes a residual of T2I-Adapters."""
    return name.startswith(T2I_RESIDUAL)


def residual_shape(channels: int, level: int) -> tuple[int | str, ...]:
    """Its shape, at a level of the UNet."""
    return ("batch", channels, *level_dimensions(level))


def residual_specs(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """The residuals among a graph's inputs, in the order of the blocks.

    Raises: ValueError: inputs that `residual_shape` does not describe.
    """
    found = {spec.name: spec for spec in specs if spec.name.startswith(T2I_RESIDUAL)}
    ordered = [found.pop(residual_name(i), None) for i in range(len(found))]
    residuals = [spec for spec in ordered if spec is not None]
    for spec in (*residuals, *found.values()):
        is_residual = len(spec.shape) == 4 and isinstance(spec.shape[1], int)
        if spec.name in found or spec.dtype != "float32" or not is_residual:
            raise ValueError(f"its input {spec.name:.80} is no residual of a T2I-Adapter")
    return residuals
