"""Random vectors of textual inversion."""

from __future__ import annotations

import torch

WIDTH = 96


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
