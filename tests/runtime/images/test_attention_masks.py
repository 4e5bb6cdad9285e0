"""Masks of IP-Adapters equal those that diffusers makes of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor

from sdexport.runtime.images.attention_masks import attention_mask, resized_bicubic
from tests.tolerances import BICUBIC_ABS


@pytest.mark.parametrize("sides", [(64, 64), (64, 96), (7, 200), (200, 7), (1, 1), (33, 17)])
def test_masks_are_those_of_diffusers(sides: tuple[int, int]) -> None:
    mask = (np.random.default_rng(0).random(sides) > 0.5).astype(np.float32)
    for positions in (1, 4, 16, 24, 63, 130, 1024):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another aspect ratio
            try:
                theirs = IPAdapterMaskProcessor.downsample(
                    torch.from_numpy(mask)[None], 1, positions, 2
                )[0, :, 0]
            except (ZeroDivisionError, RuntimeError):
                continue  # which needs at least one place each way
        ours = attention_mask(mask, positions)
        assert ours.shape == (positions,)
        assert np.abs(ours - theirs.numpy()).max() <= BICUBIC_ABS, (sides, positions)


def test_interpolation_is_that_of_pytorch() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        before, after = rng.integers(1, 40, 2), rng.integers(1, 40, 2)
        image = rng.random(before, np.float32)
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(image)[None, None], tuple(after.tolist()), mode="bicubic"
        )
        ours = resized_bicubic(image, *after.tolist())
        assert np.abs(ours - theirs.numpy()[0, 0]).max() <= BICUBIC_ABS
