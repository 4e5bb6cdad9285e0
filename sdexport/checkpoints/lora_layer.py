"""What a LoRA file holds for one layer of a checkpoint, checked against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sdexport.checkpoints.lora_methods import bias_change, new_weight
from sdexport.runtime.adapters.lora_kinds import BIASES, SINGLE, Kind, kind_of
from sdexport.runtime.adapters.lora_settings import ratio_of


@dataclass(frozen=True)
class Layer:
    """A layer's kind, None if only its bias changes; its tensors by role; alpha / rank."""

    kind: Kind | None
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
            if not tensor.is_floating_point() and role not in SINGLE:
                raise ValueError(f"its {role} is {tensor.dtype}, so the file is quantised")
            if not torch.isfinite(tensor.to(torch.float32)).all():
                raise ValueError("it holds NaN or infinity")
            if role in SINGLE and tensor.numel() != 1:
                raise ValueError(f"{role} has {tensor.numel()} values, expected one")
        kind = None if BIASES.issuperset(tensors) else kind_of(tensors)
        layer = cls(kind, tensors, ratio_of(kind, tensors, ratio))
        layer._check_shapes(shape)
        return layer

    def merge_into(self, target: Any, scale: float) -> dict[str, torch.Tensor]:
        """The new weight and bias of a layer, float32; without those that stay.

        Args:
          target: a layer of the checkpoint with its weights, which do not change.
        """
        factors = {role: tensor.to(torch.float32) for role, tensor in self.tensors.items()}
        new = {}
        if self.kind is not None:
            old = target.weight.detach().float()
            new["weight"] = new_weight(self.kind, old, factors, self.ratio, scale)
        change = bias_change(factors, self.ratio)
        if change is not None:
            bias = change.flatten() * scale
            has_bias = getattr(target, "bias", None) is not None
            new["bias"] = target.bias.detach().float() + bias if has_bias else bias
        return new

    def _check_shapes(self, shape: torch.Size) -> None:
        """Merge tensors without data."""
        empty = {k: v.to(torch.float32).to("meta") for k, v in self.tensors.items()}
        empty |= {k: v for k, v in self.tensors.items() if k in SINGLE}
        if self.kind is not None:
            weight = torch.empty(shape, device="meta")
            merged = new_weight(self.kind, weight, empty, self.ratio, 1.0)
            if merged.shape != shape:
                raise ValueError(f"expected {tuple(shape)}, got {tuple(merged.shape)}")
        bias = bias_change(empty, self.ratio)
        if bias is not None and bias.numel() != shape[0]:
            raise ValueError(f"expected a bias of {shape[0]}, got {bias.numel()} values")
