"""LyCORIS modules with random weights: what they store, and the weight that they compute."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lycoris.modules import (
        ButterflyOFTModule,
        DiagOFTModule,
        DyLoraModule,
        FullModule,
        GLoRAModule,
        IA3Module,
        LoConModule,
        LohaModule,
        LokrModule,
        NormModule,
    )

METHODS = {
    "locon": LoConModule,
    "loha": LohaModule,
    "lokr": LokrModule,
    "glora": GLoRAModule,
    "ia3": IA3Module,
    "oft": DiagOFTModule,
    "boft": ButterflyOFTModule,
    "full": FullModule,
    "dylora": DyLoraModule,
    "norm": NormModule,
}
Merged = tuple[torch.Tensor, torch.Tensor | None]


def random_layer(method: str, layer: nn.Module, seed: int, **options: Any) -> Any:
    """A LyCORIS module for a layer, with random weights."""
    module = METHODS[method]("layer", layer, 1.0, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        is_length = name in ("dora_scale", "rescale")
        weight.data = weight.data * (1 + 0.3 * noise) if is_length else 0.2 * noise
    return module


def stored(module: Any) -> dict[str, torch.Tensor]:
    """The weights under the names that LyCORIS writes them with, without the layer's name."""
    if isinstance(module, FullModule):
        pairs: dict[str, Any] = {"diff": module.weight, "diff_b": module.bias}
    else:
        pairs = module.custom_state_dict() or module.state_dict()
    return {k: v.detach().clone().contiguous() for k, v in pairs.items() if v is not None}


def merged(module: Any, scale: float) -> Merged:
    """The layer's weight and bias with the module applied at a scale.

    These are what its forward pass computes with: get_merged_weight multiplies the change of LoHa
    and LoKr by alpha / rank twice.
    """
    if isinstance(module, DyLoraModule):
        weights = stored(module)
        product = weights["lora_up.weight"] @ weights["lora_down.weight"].flatten(1)
        change = product.reshape(module.shape) * (float(weights["alpha"]) / module.lora_dim)
        return module.org_weight.detach() + scale * change, None
    found: list[Any] = []

    def keep(x: torch.Tensor, weight: torch.Tensor, bias: Any = None, **_: Any) -> torch.Tensor:
        found.extend((weight, bias))
        return torch.zeros(())

    layer = module.org_module[0]
    inputs = {"conv2d": (1, layer.weight.shape[1] if layer.weight.ndim > 1 else 1, 4, 4)}
    shape = inputs.get(module.module_type, (1, layer.weight.shape[-1]))
    module.multiplier, module.op = scale, keep
    with torch.no_grad():
        module(torch.zeros(shape))
        weight, bias = found
        before = getattr(layer, "bias", None)
        new_bias = None if bias is None else bias + (0 if before is None else before)
        return layer.weight.detach() + weight, new_bias
