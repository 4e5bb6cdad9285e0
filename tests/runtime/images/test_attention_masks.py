"""Masks of IP-Adapters equal those that diffusers makes of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image

from sdexport import InvalidArgumentError
from sdexport.runtime.adapters.ip_images import load_attention_masks
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


BOX = np.random.default_rng(2).random((30, 44)) > 0.5
LOADED: dict[str, Any] = {
    "mode L": Image.fromarray(BOX * np.uint8(255)),
    "mode 1": Image.fromarray(BOX),
    "mode RGB": Image.fromarray(BOX * np.uint8(255)).convert("RGB"),
    "floats": BOX.astype(np.float32),
}


@pytest.mark.parametrize("kind", LOADED)
@pytest.mark.parametrize("size", [(64, 64), (16, 24), (30, 44)])
def test_loaded_masks_are_those_of_diffusers(kind: str, size: tuple[int, int]) -> None:
    height, width = size
    (ours,) = load_attention_masks(LOADED[kind], 1, size)
    theirs = IPAdapterMaskProcessor(vae_scale_factor=1).preprocess(
        LOADED[kind], height=height, width=width
    )
    np.testing.assert_array_equal(ours, theirs[0, 0].numpy())


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float64"])
def test_masks_of_0_and_1(dtype: str, tmp_path: Path) -> None:
    """They are black and white in any type, and in files too."""
    size = BOX.shape[0], BOX.shape[1]
    two = load_attention_masks(np.stack([BOX, ~BOX]).astype(dtype), 2, size)
    np.testing.assert_array_equal(two, np.stack([BOX, ~BOX]))
    Image.fromarray(BOX.astype(np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(load_attention_masks(tmp_path / "m.png", 1, size), BOX[None])
    with pytest.raises(InvalidArgumentError, match="masks: contains NaN"):
        load_attention_masks(np.full((4, 4), np.nan), 1, size)
