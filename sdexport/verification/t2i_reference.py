"""Random features of a T2I-Adapter, given to a UNet of PyTorch for its reference outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sdexport.engines.session import Feeds
from sdexport.graphs.wrappers import Part
from sdexport.runtime.adapters.t2i_inputs import residual_name, residual_shape
from sdexport.runtime.expected_calls import level_sizes
from sdexport.verification.reference import RECORDED_SIZES, SEED


@contextmanager
def t2i_added(part: Part, module: Any) -> Iterator[Feeds]:
    """Let a UNet add features within its blocks. Yields: the inputs of its graph for them."""
    sizes = dict(RECORDED_SIZES) | level_sizes(RECORDED_SIZES["height"], RECORDED_SIZES["width"])
    generator = torch.Generator().manual_seed(SEED)
    features = [
        torch.randn([sizes[d] if isinstance(d, str) else d for d in shape], generator=generator)
        for shape in (residual_shape(*each) for each in _blocks(module))
    ]
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: (
            args,
            {**kwargs, "down_intrablock_additional_residuals": [each.clone() for each in features]},
        ),
        with_kwargs=True,
    )
    try:
        yield {residual_name(i): feature.numpy() for i, feature in enumerate(features)}
    finally:
        hook.remove()


def _blocks(unet: Any) -> list[tuple[int, int]]:
    """Channels and level of each feature that a UNet adds: on the way down, and in the middle."""
    found, level = [], 0
    for block, channels in zip(unet.down_blocks, unet.config.block_out_channels, strict=True):
        halves = block.downsamplers is not None
        early = getattr(block, "has_cross_attention", False)
        found.append((channels, level if early else level + halves))
        level += halves
    return [*found, (unet.config.block_out_channels[-1], level)]
