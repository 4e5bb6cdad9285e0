"""Gaussian noise equal to `torch.randn` for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.noise import philox

try:
    from sdexport.runtime.noise import _noise as source
except ImportError:  # not compiled
    from sdexport.runtime.noise import _noise_numpy as source  # type: ignore[no-redef]

MAX_SEED = 2**64 - 1
DEVICES = ("cpu", "cuda")
_BLOCK = 16
_CHUNK = 32768  # values per pass: few enough to stay in the processor's cache


class TorchGenerator:
    """The stream of normal numbers that `torch.Generator(device).manual_seed(seed)` gives.

    Copies and unpickled generators continue the stream independently.

    Args:
      seed: -2**63 <= seed < 2**64; like PyTorch, the CPU generator uses the lowest 32 bits.
      device: "cpu" or "cuda". The CUDA stream is computed on the CPU; no GPU is needed.
      multiprocessors, threads_per_multiprocessor: for "cuda", the GPU to reproduce. GPUs differ
        only in draws of more values than they have threads (the product of the two). None stands
        for a GPU with enough threads and allows draws of up to philox.SAFE_SIZE values.
        Typical: T4 40 and 1024, RTX 3060 28 and 1536, RTX 4090 128 and 1536, A100 108 and 2048,
        H100 and H200 132 and 2048.
    Raises: InvalidArgumentError: the seed is not an integer or is out of range; unknown device;
      numbers that no GPU has.
    Source: CPU: mt19937 (Matsumoto and Nishimura 1998) and the Box-Muller transform, in the layout
      of PyTorch's normal_fill and normal_distribution. CUDA: sdexport.runtime.noise.philox.
    Example:
        >>> from sdexport import TorchGenerator
        >>> generator = TorchGenerator(seed=0)
        >>> latents = generator.randn((1, 4, 64, 64))
        >>> latents.shape, latents.dtype
        ((1, 4, 64, 64), dtype('float32'))
        >>> print(latents[0, 0, 0, :3].round(4))
        [-1.1258 -1.1524 -0.2506]
    """

    def __init__(
        self,
        seed: int,
        device: str = "cpu",
        *,
        multiprocessors: int | None = None,
        threads_per_multiprocessor: int = 2048,
    ) -> None:
        if device not in DEVICES:
            raise InvalidArgumentError(
                f"unknown noise device {shown(device)}; choose one of {', '.join(DEVICES)}"
            )
        philox.check_gpu(multiprocessors, threads_per_multiprocessor)
        self.seed = check_seed(seed)
        self.device = device
        self._gpu = multiprocessors, threads_per_multiprocessor
        self._offset = 0
        self._spare: float | None = None
        self._start(0)

    def _start(self, words: int) -> None:
        """Seed the CPU stream and skip the first `words` words."""
        self._source = source
        self._bits = source.MT19937(self.seed & 0xFFFFFFFF)
        self._drawn = 0
        for start in range(0, words, _CHUNK):
            self._draw(np.empty(min(_CHUNK, words - start), dtype=np.uint32))

    def __getstate__(self) -> dict[str, Any]:
        """For `copy` and `pickle`: seed and position, which do not depend on the source."""
        return {k: v for k, v in vars(self).items() if k not in ("_source", "_bits")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start(self._drawn)

    def __repr__(self) -> str:
        at = self._offset if self.device == "cuda" else self._drawn
        return f"TorchGenerator(seed={self.seed}, device={self.device!r}) at {at}"

    @property
    def restarts_from_seed(self) -> bool:
        """Whether a new generator with the same seed and device gives the same numbers."""
        return not (self._drawn or self._offset) and self._gpu[0] is None

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Draw standard normal numbers and advance the stream.

        Args:
          shape: sizes of 0 or more.
        Returns: float32 array of `shape`. It is within 1e-6 of `torch.randn(shape, generator=...)`
          on a CPU with AVX2, within 3e-6 without, where PyTorch rounds the angles differently, and
          within 1e-5 for CUDA, which approximates sine and cosine.
        Raises: InvalidArgumentError: a negative size; too many values for a CUDA draw.
        """
        shape = tuple(shape)
        if any(size < 0 for size in shape):
            raise InvalidArgumentError(f"noise: sizes must not be negative, got {shape}")
        size = math.prod(shape)
        if self.device == "cuda":
            values = self._cuda(size)
        else:
            values = self._blocks(size) if size >= _BLOCK else self._singles(size)
        return values.reshape(shape)

    def _cuda(self, size: int) -> np.ndarray:
        if not size:
            return np.empty(0, dtype=np.float32)
        threads = philox.grid_threads(size, *self._gpu)
        values, self._offset = philox.normals(size, threads, seed=self.seed, offset=self._offset)
        return values

    def _blocks(self, size: int) -> np.ndarray:
        """Box-Muller over blocks of 16; the last block overlaps the one before if it has to."""
        values = np.empty(size, dtype=np.float32)
        rest = size % _BLOCK
        for start in range(0, size - rest, _CHUNK):
            self._normals(values[start : min(start + _CHUNK, size - rest)])
        if rest:
            self._draw(values[-rest:])
            self._normals(values[-_BLOCK:])
        return values

    def _normals(self, out: np.ndarray) -> None:
        self._draw(out)
        self._source.box_muller(out)

    def _draw(self, out: np.ndarray) -> None:
        self._bits.draw(out)
        self._drawn += out.size

    def _singles(self, size: int) -> np.ndarray:
        """One by one in float64; the second number of a pair is kept for the next draw."""
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
        words = np.empty(2, dtype=np.uint32)
        self._draw(words)
        high, low = words.tolist()
        return float((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def check_seed(seed: int) -> int:
    """A seed as PyTorch uses it: -2**63 <= seed < 2**64, as an unsigned 64-bit number.

    Raises: InvalidArgumentError: no integer, or out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise InvalidArgumentError(f"seed: expected an integer, got {shown(seed)}")
    if not -(2**63) <= seed <= MAX_SEED:
        raise InvalidArgumentError(f"seed: expected -2**63 <= seed < 2**64, got {seed}")
    return int(seed) % 2**64
