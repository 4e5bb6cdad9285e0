"""Gaussian noise equal to `torch.randn` for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runtime import philox

MAX_SEED = 2**64 - 1
DEVICES = ("cpu", "cuda")
_BLOCK = 16
_CHUNK = 32768  # values that stay in the cache from the bits to the last product
_QUARTER = np.complex128  # any type of 16 bytes that NumPy copies as they are


class TorchGenerator:
    """A stream of normal numbers, drawn as `torch.Generator(device)` would draw them.

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
      PyTorch's normal_fill and normal_distribution. CUDA: runtime.philox.
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
        self._bits = np.random.MT19937(0)
        np.random.RandomState(self._bits).seed(self.seed & 0xFFFFFFFF)
        self._words = np.random.Generator(self._bits)
        self._spare: float | None = None

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Draw standard normal numbers and advance the stream.

        Returns: float32 array of `shape`, within 1e-6 of `torch.randn(shape, generator=...)` for
          the CPU; within 1e-5 for CUDA, whose sine and cosine are approximations.
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
            room = values[start : min(start + _CHUNK, size - rest)]
            _box_muller(self._draw(room.size), room)
        if rest:
            self._draw(rest)
            _box_muller(self._draw(_BLOCK), values[-_BLOCK:])
        return values

    def _draw(self, size: int) -> np.ndarray:
        """Words of 32 random bits, uint32."""
        return self._words.integers(0, 2**32, size, dtype=np.uint32)

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


def _box_muller(words: np.ndarray, out: np.ndarray) -> None:
    """The first half of each block of 16 gives the radius, the second the angle.

    All in float32, because PyTorch rounds there too and the angle's rounding shows. A word's lowest
    24 bits are the uniform number u in [0, 1); scales of powers of two round nothing, so they are
    multiplied into what follows. Blocks are taken apart and put together by copies of 16 bytes, so
    that all else runs over long rows; NumPy's loops over eight numbers at a time are slow.

    Args:
      words: (n,) uint32, n a multiple of 16.
      out: (n,) float32, written.
    """
    quarters = words.view(_QUARTER).reshape(-1, 4).T.copy()
    halves = quarters.view(np.int32).reshape(2, -1)
    halves &= np.int32(0xFFFFFF)
    radius, angle = halves.astype(np.float32)
    radius *= np.float32(-(2.0**-24))
    radius += np.float32(1)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2 * np.pi) * np.float32(2.0**-24)
    cosine, sine = np.cos(angle), np.sin(angle, out=angle)
    cosine *= radius
    sine *= radius
    normal = out.view(_QUARTER).reshape(-1, 4)
    normal[:, 0], normal[:, 1] = cosine.view(_QUARTER).reshape(2, -1)
    normal[:, 2], normal[:, 3] = sine.view(_QUARTER).reshape(2, -1)
