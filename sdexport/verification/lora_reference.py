"""A LoRA of random factors, added to a module of PyTorch for its reference outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from sdexport.engines.session import Feeds
from sdexport.graphs.wrappers import Part
from sdexport.runtime.adapters.lora_inputs import DOWN, UP, down_input, input_name, up_input
from sdexport.verification.reference import SEED, random_signs

RANK = 2
STRENGTH = 0.25
"""Size of the change next to the layer's own output, roughly, if its weights were random."""
_Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@contextmanager
def lora_added(part: Part, module: nn.Module) -> Iterator[Feeds]:
    """Add a LoRA to all layers of a module. Yields: the inputs of its graphs that take LoRAs."""
    factors = _random_factors(module)
    inputs = {}
    for name, (down, up) in factors.items():
        inputs[input_name(name, DOWN)] = down_input(down.numpy())
        inputs[input_name(name, UP)] = up_input(up.flatten(1).numpy(), convolution=down.ndim > 2)
    with _added(module, factors):
        yield inputs


def _random_factors(module: nn.Module) -> _Factors:
    """(down, up) of every linear and convolution layer, in the shapes of PyTorch's weights.

    Only the signs are random: in the package they take a twentieth of the room of normal numbers.
    """
    generator = torch.Generator().manual_seed(SEED)
    factors = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            outputs, *rest = layer.weight.shape
            down = random_signs([RANK, *rest], generator) / math.sqrt(math.prod(rest))
            up = random_signs([outputs, RANK, *(1 for _ in rest[1:])], generator)
            factors[name] = down, up * (STRENGTH / math.sqrt(RANK))
    return factors


@contextmanager
def _added(module: nn.Module, factors: _Factors) -> Iterator[None]:
    """Add the change of each layer to its output."""
    hooks = [
        module.get_submodule(name).register_forward_hook(partial(_sum, down=down, up=up))
        for name, (down, up) in factors.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sum(
    layer: nn.Module, args: Any, output: torch.Tensor, *, down: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    if isinstance(layer, nn.Conv2d):
        settings: Any = (None, layer.stride, layer.padding, layer.dilation)
        return output + nn.functional.conv2d(nn.functional.conv2d(args[0], down, *settings), up)
    return output + args[0] @ down.T @ up.T
