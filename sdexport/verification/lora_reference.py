"""Reference outputs with a LoRA of random factors: PyTorch's, for the graphs that take LoRAs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sdexport.graphs.wrappers import Part
from sdexport.runtime.adapters.lora_inputs import DOWN, UP, down_input, input_name, up_input
from sdexport.runtime.models.components import lora_graph
from sdexport.verification.reference import (
    SEED,
    TorchSession,
    record_component,
    record_token_graphs,
)

RANK = 2
STRENGTH = 0.25
"""Size of the change next to the layer's own output, roughly, if its weights were random."""
_Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def record_lora_graphs(
    session: TorchSession,
    part: Part,
    module: Any,
    folder: Path,
    input_ids: np.ndarray | None = None,
) -> None:
    """Write the inputs and PyTorch's outputs of a component's graphs that take LoRAs.

    Args:
      session: of `module`. input_ids: see record_component.
    """
    factors = _random_factors(module)
    inputs: dict[str, np.ndarray] = {}
    for name, (down, up) in factors.items():
        inputs[input_name(name, DOWN)] = down_input(down.numpy())
        inputs[input_name(name, UP)] = up_input(up.flatten(1).numpy(), convolution=down.ndim > 2)
    with _added(module, factors):
        path = folder / f"{lora_graph(part.name)}.npz"
        record_component(session, part, path, input_ids, further=inputs)
        if input_ids is not None:
            record_token_graphs(session, module, folder, input_ids, lora=inputs)


def _random_factors(module: nn.Module) -> _Factors:
    """(down, up) of every linear and convolution layer, in the shapes of PyTorch's weights."""
    generator = torch.Generator().manual_seed(SEED)
    factors = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            outputs, *rest = layer.weight.shape
            down = torch.randn(RANK, *rest, generator=generator) / math.sqrt(math.prod(rest))
            up = torch.randn(outputs, RANK, *(1 for _ in rest[1:]), generator=generator)
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
