"""The VAE, for the whole image and in tiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import tiling
from sdexport import Package, Pipeline
from sdexport.engines import SessionBase, TensorSpec
from sdexport.engines.session import Feeds
from sdexport.runtime.images import vae
from sdexport.runtime.images.pixels import to_uint8
from tests.tolerances import (
    BLEND_ABS,
    POSTERIOR_ABS,
    POSTERIOR_REL,
    TILED_LATENTS,
    TILED_MEAN,
    TILED_SEAM,
    TILING_MEMORY,
)

FAST: dict[str, Any] = {"num_inference_steps": 3, "scheduler": "ddim", "seed": 0}


class Local(SessionBase):
    """A VAE in which each cell is independent: nearest upsampling, or the mean of a block."""

    def __init__(self, scale: int, *, encodes: bool) -> None:
        names = ("sample", "latent_parameters") if encodes else ("latent_sample", "sample")
        specs = [TensorSpec(n, "float32", ("b", "c", f"h{n}", f"w{n}")) for n in names]
        super().__init__("vae", specs[:1], specs[1:])
        self.scale, self.encodes = scale, encodes
        self.sizes: list[tuple[int, ...]] = []

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        (values,) = feeds.values()
        self.sizes.append(values.shape[2:])
        if self.encodes:
            b, c, h, w = values.shape
            blocks = values.reshape(b, c, h // self.scale, self.scale, w // self.scale, self.scale)
            return {"latent_parameters": blocks.mean(axis=(3, 5))}
        return {"sample": values.repeat(self.scale, axis=2).repeat(self.scale, axis=3)}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), tile=st.integers(2, 40),
    scale=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_tiled_decode_of_a_local_decoder_is_exact(
    height: int, width: int, tile: int, scale: int
) -> None:
    latents, session = random(2, 3, height, width), Local(scale, encodes=False)
    tiled = vae.decode(session, latents, tile=tile)
    assert all(max(size) <= tile for size in session.sizes)
    whole = vae.decode(session, latents)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=BLEND_ABS)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), tile=st.integers(2, 20),
    scale=st.sampled_from([2, 4, 8, 16]),
)  # fmt: skip
def test_tiled_encode_of_a_local_encoder_is_exact(
    height: int, width: int, tile: int, scale: int
) -> None:
    """Tiles start at latent cells, however many pixels a cell has."""
    pixels, session = random(1, 3, height * scale, width * scale), Local(scale, encodes=True)
    tiled = vae.encode(session, pixels, tile=tile * scale, downscale=scale)
    assert all(max(size) <= tile * scale for size in session.sizes)
    whole = vae.encode(session, pixels)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=BLEND_ABS)


@given(size=st.integers(1, 3000), tile=st.integers(2, 200), unit=st.sampled_from([1, 4, 8, 16]))
def test_tiles_overlap_by_a_quarter_and_cover_everything(size: int, tile: int, unit: int) -> None:
    starts = np.array(vae._starts(size * unit, tile * unit, unit))
    assert starts[0] == 0
    assert not (starts % unit).any()
    if size <= tile:
        assert len(starts) == 1
        return
    assert starts[-1] + tile * unit == size * unit
    assert (np.diff(starts) <= 0.75 * tile * unit).all()


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (8, 8)])
def test_tile_as_large_as_the_image_is_the_whole(pipe: Pipeline, size: tuple[int, int]) -> None:
    latents = random(1, 4, size[0] // 8, size[1] // 8)
    decoder, encoder = pipe.session("vae_decoder"), pipe.session("vae_encoder")
    whole, tiled = vae.decode(decoder, latents), vae.decode(decoder, latents, tile=8)
    assert whole.tobytes() == tiled.tobytes()
    whole, tiled = vae.encode(encoder, whole), vae.encode(encoder, whole, tile=64)
    assert whole.tobytes() == tiled.tobytes()


def seams(pixels: np.ndarray, tile: int) -> tuple[float, float]:
    """Mean difference of adjacent pixels where tiles start or end, and everywhere."""
    found = []
    for axis in (1, 2):
        steps = np.abs(np.diff(pixels.astype(int), axis=axis)).mean((3 - axis, 3, 0))
        starts = [s * 8 for s in vae._starts(pixels.shape[axis] // 8, tile // 8, 1)]
        edges = [s - 1 for s in starts[1:]] + [s + tile - 1 for s in starts[:-1]]
        found.append((steps[edges].mean(), steps.mean()))
    at_edges, everywhere = np.mean(found, axis=0)
    return float(at_edges), float(everywhere)


@pytest.mark.parametrize("tile", [64, 128])
def test_tiled_images_are_close_and_have_no_seams(pipe: Pipeline, tile: int) -> None:
    decoder, encoder = pipe.session("vae_decoder"), pipe.session("vae_encoder")
    y, x = np.mgrid[:256, :320]
    shades = np.stack([x / 320, y / 256, (x - 100) ** 2 + (y - 100) ** 2 < 60**2], axis=0)
    sample = (shades[None] * 2 - 1).astype(np.float32)
    one, other = vae.encode(encoder, sample), vae.encode(encoder, sample, tile=tile)
    mean, tiled_mean = one[:, :4], other[:, :4]
    assert np.abs(mean - tiled_mean).mean() <= TILED_LATENTS * mean.std()
    whole = to_uint8(vae.decode(decoder, mean))
    parts = to_uint8(vae.decode(decoder, mean, tile=tile // 8))
    assert np.abs(whole.astype(int) - parts.astype(int)).mean() <= TILED_MEAN
    (at_edges, everywhere), (at_edges_of_whole, everywhere_of_whole) = (
        seams(pixels, tile) for pixels in (parts, whole)
    )
    assert at_edges - everywhere <= at_edges_of_whole - everywhere_of_whole + TILED_SEAM


def test_tiled_image_to_image(pipe: Pipeline, package: Path) -> None:
    sessions = {n: pipe.session(n) for n in ("text_encoder", "unet", "vae_decoder", "vae_encoder")}
    tiled = Pipeline(Package.load(package, verify=False), sessions=sessions, vae_tile=64)
    source = pipe("a red circle", **FAST).images[0]
    result = tiled("a red circle", image=source, strength=0.5, **FAST)
    assert result.images[0].size == (128, 128)


@pytest.mark.parametrize("tile", [0, 8, 63, 65, 100, -64, 64.0, "64", True, 10**9])
def test_pipeline_rejects_other_tiles(package: Path, tile: Any) -> None:
    with pytest.raises(ValueError, match="vae_tile must be"):
        Pipeline(Package.load(package, verify=False), vae_tile=tile)


def test_sample_posterior_equals_diffusers() -> None:
    torch = pytest.importorskip("torch")
    vaes = pytest.importorskip("diffusers.models.autoencoders.vae")
    moments = random(2, 8, 5, 6) * 40
    posterior = vaes.DiagonalGaussianDistribution(torch.from_numpy(moments))
    expected = posterior.sample(torch.Generator().manual_seed(5)).numpy()
    noise = torch.randn((2, 4, 5, 6), generator=torch.Generator().manual_seed(5)).numpy()
    drawn = vae.sample_posterior(moments, noise)
    np.testing.assert_allclose(drawn, expected, rtol=POSTERIOR_REL, atol=POSTERIOR_ABS)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="peak memory is read from the resource module")
def test_tiles_bound_the_memory(package: Path) -> None:
    report = tiling.run(package)
    for kind in ("decode", "encode"):
        assert report[kind]["ratio"] <= TILING_MEMORY, report[kind]
