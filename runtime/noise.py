"""Gaussian noise equal to `torch.randn` for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_SEED = 2**64 - 1
_BLOCK = 16


class TorchGenerator:
    """A stream of normal numbers, drawn as `torch.Generator(device)` would draw them.

    Args:
      seed: -2**63 <= seed < 2**64; like PyTorch, the CPU generator uses the lowest 32 bits.
      device: "cpu".
    Raises: ValueError: seed out of range, or unknown device. TypeError: seed is no integer.
    Source: mt19937 (Matsumoto and Nishimura 1998) and the Box-Muller transform, laid out as in
      PyTorch's normal_fill and normal_distribution.
    """

    def __init__(self, seed: int, device: str = "cpu") -> None:
        if device != "cpu":
            raise ValueError(f"unknown noise device '{device}'; choose one of cpu")
        self.seed = check_seed(seed)
        self._bits = np.random.MT19937()
        np.random.RandomState(self._bits).seed(self.seed & 0xFFFFFFFF)
        self._spare: float | None = None

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Draw standard normal numbers and advance the stream.

        Returns: float32 array of `shape`, within 1e-6 of `torch.randn(shape, generator=...)`.
        Raises: ValueError: a negative size.
        """
        shape = tuple(shape)
        if any(size < 0 for size in shape):
            raise ValueError(f"noise: sizes must not be negative, got {shape}")
        size = math.prod(shape)
        values = self._blocks(size) if size >= _BLOCK else self._singles(size)
        return values.reshape(shape)

    def _blocks(self, size: int) -> np.ndarray:
        """Box-Muller over blocks of 16; a rest is covered by a last block that overlaps."""
        values = np.empty(size, dtype=np.float32)
        whole = size - size % _BLOCK
        rows = self._uniform(size)
        values[:whole] = _box_muller(rows[:whole])
        if whole != size:
            values[-_BLOCK:] = _box_muller(self._uniform(_BLOCK))
        return values

    def _uniform(self, size: int) -> np.ndarray:
        """Numbers in [0, 1) with 24 random bits, float32."""
        return ((self._bits.random_raw(size) & 0xFFFFFF) * 2.0**-24).astype(np.float32)

    def _singles(self, size: int) -> np.ndarray:
        """One by one in double precision; the second number of a pair waits for the next draw."""
        values = np.empty(size, dtype=np.float32)
        for i in range(size):
            if self._spare is not None:
                values[i], self._spare = self._spare, None
                continue
            angle = 2 * math.pi * self._uniform53()
            radius = math.sqrt(-2.0 * math.log1p(-self._uniform53()))
            values[i], self._spare = radius * math.cos(angle), radius * math.sin(angle)
        return values

    def _uniform53(self) -> float:
        high, low = (int(word) for word in self._bits.random_raw(2))
        return float((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def check_seed(seed: int) -> int:
    """Return a seed in PyTorch's range as an unsigned 64-bit number.

    Raises: ValueError: out of range. TypeError: no integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected an integer, got {type(seed).__name__}")
    if not -(2**63) <= seed <= MAX_SEED:
        raise ValueError(f"seed: expected -2**63 <= seed < 2**64, got {seed}")
    return int(seed) % 2**64


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """The first half of each block of 16 gives the radius, the second the angle.

    All in float32, because PyTorch rounds there too and the angle's rounding shows.
    """
    pairs = uniform.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
