"""PyTorch's CPU noise in NumPy: the fallback where `sdexport.runtime.noise._noise` is not compiled.

Both modules have the same interface and draw the same words; the normal numbers differ by float32
rounding at most. This one is five times slower.
"""

from __future__ import annotations

import numpy as np

_QUARTER = np.complex128  # stands for 16 bytes: any dtype of that size that NumPy copies unchanged


class MT19937:
    """The stream of 32-bit words of mt19937, seeded with one word: 0 <= seed < 2**32."""

    def __init__(self, seed: int) -> None:
        bits = np.random.MT19937(0)
        np.random.RandomState(bits).seed(seed)
        self._words = np.random.Generator(bits)

    def draw(self, out: np.ndarray) -> None:
        """Fill an array with the next words.

        Args:
          out: (n,) of any dtype with 4-byte items; its bytes are overwritten.
        """
        out.view(np.uint32)[:] = self._words.integers(0, 2**32, out.size, dtype=np.uint32)


def box_muller(words: np.ndarray) -> None:
    """Turn 32-bit words into standard normal numbers, in place.

    In each block of 16 words the first 8 give the radius and the last 8 the angle. The lowest 24
    bits of a word are a uniform number u in [0, 1). Everything is computed in float32, as PyTorch
    does, because the rounding of the angle is visible in the result. Factors that are powers of two
    are exact and are merged into the next multiplication. The halves of all blocks are gathered
    into two long rows first, because NumPy is slow on rows of eight.

    Args:
      words: (n,) of any dtype with 4-byte items, n a multiple of 16; holds float32 afterwards.
    Source: Box and Muller 1958; the layout is that of PyTorch's normal_fill.
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
