"""IP-Adapters of random weights, added to a UNet of PyTorch for its reference outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

from sdexport.engines.session import Feeds, TensorSpec
from sdexport.graphs.wrappers import Part
from sdexport.runtime.adapters.ip_groups import ImageGroup, group_inputs
from sdexport.runtime.adapters.ip_inputs import (
    KEY,
    VALUE,
    ImageLayer,
    input_name,
    weights_name,
    weights_shape,
)
from sdexport.runtime.expected_calls import level_sizes
from sdexport.verification.reference import RECORDED_SIZES, SEED

_TOKENS = (3, 2)
"""Of an image of the first adapter, and of the second."""
_SCALES = (0.7, [0.4, 1.1])
"""Of the first adapter; of the two images of the second, which have masks."""


class _WithImages:
    """The cross-attention of one layer, to the text and to images."""

    def __init__(self, inner: Any, images: list[torch.Tensor], masks: list[Any]) -> None:
        self.inner, self._images, self._masks = inner, images, masks

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any, **keywords: Any
    ) -> Any:
        states = (encoder_hidden_states, self._images)
        return self.inner(attn, hidden_states, states, **keywords, ip_adapter_masks=self._masks)


@contextmanager
def ip_added(part: Part, module: Any) -> Iterator[Feeds]:
    """Add two IP-Adapters to a UNet: one with an image, one with two images that have masks.

    Yields: the inputs of its graph that takes them.
    """
    generator = torch.Generator().manual_seed(SEED)
    width = module.config.cross_attention_dim

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    first, second = _TOKENS
    images = [
        drawn(RECORDED_SIZES["batch"], 1, first, width),
        drawn(RECORDED_SIZES["batch"], 2, second, width),
    ]
    masks = [
        None,
        (drawn(1, 2, 4 * RECORDED_SIZES["height"], 4 * RECORDED_SIZES["width"]) > 0).float(),
    ]
    before = dict(module.attn_processors)
    layers = {n.removesuffix(".processor"): p for n, p in before.items() if ".attn2." in n}
    found = {name: _random(module.get_submodule(name), width, drawn) for name in layers}
    changed = {f"{name}.processor": _WithImages(p, images, masks) for name, p in found.items()}
    try:
        module.set_attn_processor({**before, **changed})
        yield _inputs(found, _levels(module), images, masks)
    finally:
        module.set_attn_processor(before)


def _random(attention: Any, width: int, drawn: Any) -> Any:
    """diffusers' attention of two IP-Adapters, with random weights."""
    processor = IPAdapterAttnProcessor2_0(attention.inner_dim, width, _TOKENS, list(_SCALES))
    for layer in (*processor.to_k_ip, *processor.to_v_ip):
        layer.weight = torch.nn.Parameter(
            drawn(*layer.weight.shape) / width**0.5, requires_grad=False
        )
    return processor


def _levels(unet: Any) -> list[int]:
    """The levels with cross-attention."""
    halves = [block.downsamplers is not None for block in unet.down_blocks]
    doubles = [block.upsamplers is not None for block in unet.up_blocks]
    found = {sum(halves)} if hasattr(unet.mid_block, "attentions") else set()
    for i, block in enumerate(unet.down_blocks):
        found |= {sum(halves[:i])} if hasattr(block, "attentions") else set()
    for i, block in enumerate(unet.up_blocks):
        found |= {sum(halves) - sum(doubles[:i])} if hasattr(block, "attentions") else set()
    return sorted(found)


def _inputs(
    processors: dict[str, Any], levels: list[int], images: list[Any], masks: list[Any]
) -> dict[str, Any]:
    """The keys and values of all groups: the first adapter, and each image of the second."""
    first, second = images
    scale, scales = _SCALES
    groups = [_group(processors, 0, first[:, 0], scale, None)]
    groups += [
        _group(processors, 1, second[:, i], scales[i], masks[1][0, i].numpy()) for i in range(2)
    ]
    specs = []
    for name, processor in processors.items():
        shape = ImageLayer(name, processor.hidden_size).shape
        specs += [TensorSpec(input_name(name, each), "float32", shape) for each in (KEY, VALUE)]
    specs += [TensorSpec(weights_name(n), "float32", weights_shape(n)) for n in levels]
    sizes = level_sizes(RECORDED_SIZES["height"], RECORDED_SIZES["width"])
    return group_inputs(specs, groups, sizes)


def _group(
    processors: dict[str, Any], adapter: int, tokens: torch.Tensor, scale: float, mask: Any
) -> ImageGroup:
    return ImageGroup(
        {name: each.to_k_ip[adapter](tokens).numpy() for name, each in processors.items()},
        {name: each.to_v_ip[adapter](tokens).numpy() for name, each in processors.items()},
        dict.fromkeys(processors, scale),
        mask,
    )
