"""TorchGenerator compared with torch.randn, over streams of several draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdexport import TorchGenerator
from tests.tolerances import NOISE_ABS, assert_close

pytestmark = pytest.mark.usefixtures("noise_source")

SHAPES = [(1,), (3,), (2, 2), (15,), (16,), (17,), (5,), (31,), (1, 4, 16, 16), (7,), (1, 4, 9, 17)]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1, -1, -3])
def test_noise_equals_torch_in_a_stream_of_shapes(seed: int) -> None:
    theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
    for shape in [*SHAPES, *reversed(SHAPES)]:
        expected = torch.randn(shape, generator=theirs).numpy()
        assert_close(ours.randn(shape), expected, abs_=NOISE_ABS)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (4, 4, 128, 96), (2, 4, 8, 32), (1, 4, 17, 19)])
def test_noise_equals_torch_for_latents_of_many_seeds(shape: tuple[int, ...]) -> None:
    for seed in range(30):
        expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
        assert_close(TorchGenerator(seed).randn(shape), expected, abs_=NOISE_ABS)


SEEDS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]),
)
SIZES = st.one_of(st.integers(0, 40), st.integers(0, 17), st.integers(41, 70_000))


@settings(max_examples=300, deadline=None)
@given(seed=SEEDS, sizes=st.lists(SIZES, min_size=1, max_size=10))
def test_noise_equals_torch_for_any_seed_and_sizes(seed: int, sizes: list[int]) -> None:
    """Small and large draws in any order: the number that a small one keeps outlives large ones."""
    theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
    for size in sizes:
        expected = torch.randn(size, generator=theirs).numpy()
        np.testing.assert_allclose(ours.randn((size,)), expected, rtol=0, atol=NOISE_ABS)
