"""PyTorch's CPU noise in NumPy, for where the compiled `sdexport.runtime.noise._noise` is missing.

Both have the same names, the same words and, within a rounding, the same numbers. This one takes
five times as long.
"""

from __future__ import annotations

import numpy as np

_QUARTER = np.complex128  # any type of 16 bytes that NumPy copies as they are


class MT19937:
    """The 32-bit words of mt19937, started from one word of seed, 0 <= seed < 2**32."""

    def __init__(self, seed: int) -> None:
        bits = np.random.MT19937(0)
        np.random.RandomState(bits).seed(seed)
        self._words = np.random.Generator(bits)

    def draw(self, out: np.ndarray) -> None:
        """Write the next words into an array of items of 4 bytes, whatever its type."""
        out.view(np.uint32)[:] = self._words.integers(0, 2**32, out.size, dtype=np.uint32)


def box_muller(words: np.ndarray) -> None:
    """Turn words of 32 bits into normal numbers, in place.

    The first half of each block of 16 gives the radius, the second the angle. All in float32,
    because PyTorch rounds there too and the angle's rounding shows. A word's lowest 24 bits are the
    uniform number u in [0, 1); scales of powers of two round nothing, so they are multiplied into
    what follows. Blocks are taken apart and put together by copies of 16 bytes, so that all else
    runs over long rows; NumPy's loops over eight numbers at a time are slow.

    Args:
      words: (n,) items of 4 bytes, n a multiple of 16; float32 afterwards.
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
    normal = words.view(_QUARTER).reshape(-1, 4)
    normal[:, 0], normal[:, 1] = cosine.view(_QUARTER).reshape(2, -1)
    normal[:, 2], normal[:, 3] = sine.view(_QUARTER).reshape(2, -1)
