"""What a LoRA file holds for one layer of a checkpoint, checked against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sdexport.checkpoints.lora_methods import BIASES, Method, bias_change, method_of, new_weight

_SINGLE = ("alpha", "scale", "on_input")
"""Roles whose tensors have one value, which may be an integer."""


@dataclass(frozen=True)
class Layer:
    """A layer's method, None if only its bias changes; its tensors by role; alpha / rank."""

    method: Method | None
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    ratio: float

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, torch.Tensor],
        shape: torch.Size,
        ratio: Callable[[int | None], float | None],
    ) -> Layer:
        """The layer of these tensors, whose values and shapes are checked.

        Args:
          tensors: by role.
          shape: of the checkpoint's weight.
          ratio: rank to alpha / rank, for files whose settings say it; otherwise None.
        Raises: ValueError, or anything that PyTorch raises: what is wrong.
        """
        for role, tensor in tensors.items():
            if not tensor.is_floating_point() and role not in _SINGLE:
                raise ValueError(f"its {role} is {tensor.dtype}, so the file is quantised")
            if not torch.isfinite(tensor.to(torch.float32)).all():
                raise ValueError("it holds NaN or infinity")
            if role in _SINGLE and tensor.numel() != 1:
                raise ValueError(f"{role} has {tensor.numel()} values, expected one")
        method = None if BIASES.issuperset(tensors) else method_of(tensors)
        layer = cls(method, tensors, _ratio(method, tensors, ratio))
        layer._check_shapes(shape)
        return layer

    def merge_into(self, target: Any, scale: float) -> dict[str, torch.Tensor]:
        """The new weight and bias of a layer, float32; without those that stay.

        Args:
          target: a layer of the checkpoint with its weights, which do not change.
        """
        factors = {role: tensor.to(torch.float32) for role, tensor in self.tensors.items()}
        new = {}
        if self.method is not None:
            old = target.weight.detach().float()
            new["weight"] = new_weight(self.method, old, factors, self.ratio, scale)
        change = bias_change(factors, self.ratio)
        if change is not None:
            bias = change.flatten() * scale
            has_bias = getattr(target, "bias", None) is not None
            new["bias"] = target.bias.detach().float() + bias if has_bias else bias
        return new

    def _check_shapes(self, shape: torch.Size) -> None:
        """Merge tensors without data."""
        empty = {k: v.to(torch.float32).to("meta") for k, v in self.tensors.items()}
        empty |= {k: v for k, v in self.tensors.items() if k in _SINGLE}
        if self.method is not None:
            weight = torch.empty(shape, device="meta")
            merged = new_weight(self.method, weight, empty, self.ratio, 1.0)
            if merged.shape != shape:
                raise ValueError(f"expected {tuple(shape)}, got {tuple(merged.shape)}")
        bias = bias_change(empty, self.ratio)
        if bias is not None and bias.numel() != shape[0]:
            raise ValueError(f"expected a bias of {shape[0]}, got {bias.numel()} values")


def _ratio(
    method: Method | None,
    tensors: Mapping[str, torch.Tensor],
    of_settings: Callable[[int | None], float | None],
) -> float:
    """What the product of a layer's factors is multiplied by: alpha / rank."""
    rank = None if method is None else method.rank(tensors)
    if "scale" in tensors:
        return float(tensors["scale"])
    if "alpha" in tensors:
        return float(tensors["alpha"]) / rank if rank else 1.0
    ratio = of_settings(rank)
    return 1.0 if ratio is None else ratio
