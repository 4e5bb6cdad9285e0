"""Random residuals of a ControlNet, added to a UNet of PyTorch for its reference outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdexport.engines.session import Feeds
from sdexport.graphs.controlnet_parts import residual_specs
from sdexport.graphs.wrappers import Part
from sdexport.runtime.expected_calls import level_sizes
from sdexport.runtime.models.components import MID_RESIDUAL
from sdexport.verification.reference import RECORDED_SIZES, SEED, random_signs

STRENGTH = 0.5
"""Standard deviation of the residuals; that of what they are added to is about 1."""


@contextmanager
def residuals_added(part: Part, module: nn.Module) -> Iterator[Feeds]:
    """Add residuals to all skip connections of a UNet. Yields: the inputs of its graph."""
    config: Any = module.config
    sizes = dict(RECORDED_SIZES) | level_sizes(RECORDED_SIZES["height"], RECORDED_SIZES["width"])
    generator = torch.Generator().manual_seed(SEED)
    residuals = {
        spec.name: STRENGTH
        * random_signs([sizes[d] if isinstance(d, str) else d for d in spec.shape], generator)
        for spec in residual_specs(config)
    }
    down = tuple(value for name, value in residuals.items() if name != MID_RESIDUAL)

    def add(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        added = {"down_block_additional_residuals": down, MID_RESIDUAL: residuals[MID_RESIDUAL]}
        return args, kwargs | added

    hook = module.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield {name: value.numpy() for name, value in residuals.items()}
    finally:
        hook.remove()
