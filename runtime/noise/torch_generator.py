"""Gaussian noise equal to `torch.randn` for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdexport.runtime.noise import philox

try:
    from sdexport.runtime.noise import _noise as source
except ImportError:  # it was not compiled
    from sdexport.runtime.noise import _noise_numpy as source  # type: ignore[no-redef]

MAX_SEED = 2**64 - 1
DEVICES = ("cpu", "cuda")
_BLOCK = 16
_CHUNK = 32768  # values that stay in the cache from the bits to the last product


class TorchGenerator:
    """A stream of normal numbers, drawn as `torch.Generator(device)` would draw them.

    Copies and pickles go on where the stream is, each for itself.

    Args:
      seed: -2**63 <= seed < 2**64; like PyTorch, the CPU generator uses the lowest 32 bits.
      device: "cpu" or "cuda". The CUDA stream is computed here, on the CPU; no GPU is needed.
      multiprocessors, threads_per_multiprocessor: for "cuda", the GPU to be imitated. A draw of no
        more values than their product is the same on every GPU as large; larger ones differ from
        GPU to GPU. None takes a GPU that is large enough, for up to philox.SAFE_SIZE values.
        Typical: T4 40 and 1024, RTX 3060 28 and 1536, RTX 4090 128 and 1536, A100 108 and 2048,
        H100 and H200 132 and 2048.
    Raises: ValueError: seed out of range, unknown device, no such GPU. TypeError: seed is no
      integer.
    Source: CPU: mt19937 (Matsumoto and Nishimura 1998) and the Box-Muller transform, laid out as in
      PyTorch's normal_fill and normal_distribution. CUDA: sdexport.runtime.noise.philox.
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
            raise ValueError(f"unknown noise device '{device}'; choose one of {', '.join(DEVICES)}")
        philox.check_gpu(multiprocessors, threads_per_multiprocessor)
        self.seed = check_seed(seed)
        self.device = device
        self._gpu = multiprocessors, threads_per_multiprocessor
        self._offset = 0
        self._spare: float | None = None
        self._start(0)

    def _start(self, words: int) -> None:
        """Begin the CPU stream after so many words."""
        self._source = source
        self._bits = source.MT19937(self.seed & 0xFFFFFFFF)
        self._drawn = 0
        for start in range(0, words, _CHUNK):
            self._draw(np.empty(min(_CHUNK, words - start), dtype=np.uint32))

    def __getstate__(self) -> dict[str, Any]:
        """For `copy` and `pickle`: where the stream is, whichever source draws it."""
        return {k: v for k, v in vars(self).items() if k not in ("_source", "_bits")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start(self._drawn)

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Draw standard normal numbers and advance the stream.

        Returns: float32 array of `shape`, within 1e-6 of `torch.randn(shape, generator=...)` on a
          CPU where PyTorch uses AVX2, within 3e-6 on others, where it rounds the angles otherwise;
          within 1e-5 for CUDA, whose sine and cosine are approximations.
        Raises: ValueError: a negative size; too many values for a CUDA draw, see above.
        """
        shape = tuple(shape)
        if any(size < 0 for size in shape):
            raise ValueError(f"noise: sizes must not be negative, got {shape}")
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
        """Box-Muller over blocks of 16; a rest is covered by a last block that overlaps."""
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
        words = np.empty(2, dtype=np.uint32)
        self._draw(words)
        high, low = words.tolist()
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
