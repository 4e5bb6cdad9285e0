"""What turns the features of an image into keys and values for the layers of a UNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class ImageProjection(nn.Module):
    """image_features -> image_tokens, and their keys and values for each layer of the UNet.

    Args:
      tokens: turns the features into tokens.
      to_k, to_v: of each layer, from the width of the tokens.
    """

    def __init__(self, tokens: nn.Module, to_k: Sequence[nn.Module], to_v: Sequence[nn.Module]):
        super().__init__()
        self.tokens, self.to_k, self.to_v = tokens, nn.ModuleList(to_k), nn.ModuleList(to_v)

    def forward(self, image_features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = self.tokens(image_features)
        pairs = zip(self.to_k, self.to_v, strict=True)
        return (tokens, *(layer(tokens) for pair in pairs for layer in pair))
