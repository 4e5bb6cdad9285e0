"""Seeds and streams; equality with torch is in tests/parity."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import TorchGenerator


def test_noise_is_a_stream() -> None:
    generator = TorchGenerator(0)
    first, second = generator.randn((1, 4, 8, 8)), generator.randn((1, 4, 8, 8))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, TorchGenerator(0).randn((1, 4, 8, 8)))
    assert first.dtype == np.float32


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64, 10**30])
def test_noise_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="-2\\*\\*63 <= seed < 2\\*\\*64"):
        TorchGenerator(seed)


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_noise_seed_of_another_type(seed: object) -> None:
    with pytest.raises(TypeError, match="expected an integer"):
        TorchGenerator(seed)  # type: ignore[arg-type]


def test_noise_unknown_device_and_shape() -> None:
    with pytest.raises(ValueError, match="choose one of cpu"):
        TorchGenerator(0, device="tpu")
    with pytest.raises(ValueError, match="must not be negative"):
        TorchGenerator(0).randn((2, -1))
    assert TorchGenerator(0).randn((0, 4)).shape == (0, 4)
