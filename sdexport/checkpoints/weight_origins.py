"""Which weights of a file a component is made of: conversions are followed on empty tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch


class NamedWeight(torch.Tensor):
    """A weight on the meta device that keeps the name it has in its file, also when it is split.

    origin: that name.
    """

    origin: str

    @classmethod
    def like(cls, name: str, value: torch.Tensor) -> Self:
        """Shape and dtype of `value`, without its values."""
        empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
        weight: Self = empty.as_subclass(cls)
        weight.origin = name
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of PyTorch; a tensor among its results is named as its first argument."""
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, cls):
            named = (a for a in args if isinstance(a, cls) and hasattr(a, "origin"))
            result.origin = next((a.origin for a in named), "")
        return result


def origins(state: Mapping[str, torch.Tensor], wanted: Iterable[str]) -> set[str]:
    """The names in the file of the weights that a module wants.

    Args:
      state: NamedWeights by the module's names; it may hold more than is wanted.
    """
    found = (state.get(name) for name in wanted)
    return {value.origin for value in found if isinstance(value, NamedWeight)}
