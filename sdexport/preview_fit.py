"""Fitting the linear map from latents to colours that cheap previews use."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sdexport.runtime.models.latent_space import LatentSpace

SIDE = 16
"""Height and width of the latents of each image."""


def fit_preview(vae: Any, space: LatentSpace) -> tuple[tuple[float, ...], ...]:
    """Least squares from latents to the mean colour of the pixels that each latent covers.

    The images are random coloured patches of several sizes, with sharp and with soft edges; no
    photographs are needed.

    Args:
      vae: the module, of C latent channels.
      space: of its latents.
    Returns: (C + 1, 3): the factors of each channel for red, green and blue, then the constants, to
      four digits.
    """
    generator = torch.Generator().manual_seed(0)
    side = SIDE * space.downscale
    images = []
    for patches in (1, 2, 4, 8):
        for mode in ("nearest", "bilinear"):
            colours = torch.rand((2, 3, patches, patches), generator=generator) * 2 - 1
            images.append(torch.nn.functional.interpolate(colours, (side, side), mode=mode))
    means, averages = [], []
    with torch.inference_mode():
        for image in torch.cat(images).split(1):
            result = vae.encode(image)
            mean = result.latents if hasattr(result, "latents") else result.latent_dist.mean
            means.append(torch.from_numpy(space.from_vae(mean.numpy())))
            averages.append(torch.nn.functional.avg_pool2d(image, space.downscale))
    cells = torch.cat(means).movedim(1, -1).flatten(0, 2).double().numpy()
    wanted = torch.cat(averages).movedim(1, -1).flatten(0, 2).double().numpy()
    with_constant = np.concatenate([cells, np.ones((len(cells), 1))], axis=1)
    solved, *_ = np.linalg.lstsq(with_constant, wanted, rcond=None)
    return tuple(tuple(float(f"{value:.4g}") for value in row) for row in solved)
