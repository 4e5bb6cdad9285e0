"""Normal numbers as a CUDA device draws them: Philox4x32-10 in the layout of PyTorch's kernels.

Each value has its own counter: the low half counts calls, the high half is the index of the GPU
thread. A draw launches blocks of 256 threads, one thread per value if the GPU has enough threads.
Otherwise each thread produces four values per turn, one grid size apart, so that the values depend
on the GPU.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; PyTorch's
ATen/native/cuda/DistributionTemplates.h; the Box-Muller transform of cuRAND's curand_normal4.
"""

from __future__ import annotations

import numpy as np

from sdexport.engines.errors import InvalidArgumentError

BLOCK = 256
SAFE_SIZE = 128 * 1536
"""Values that A100, H100, H200, B200, RTX 4090 and 5090 draw alike: twelve latents of SD 1.5."""
MAX_SIZE = 2**29
"""PyTorch splits larger draws."""
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CHUNK = 8192
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Philox4x32 with ten rounds.

    Args:
      counter: four words of 32 bits, as uint64 arrays whose shapes broadcast.
      key: two words of 32 bits.
    Returns: four words of 32 bits, as uint64 arrays.
    Source: Salmon et al. 2011, section 3.3.
    """
    a, b, c, d = counter
    key_a, key_b = key
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a = (second >> _HALF) ^ b ^ np.uint64(key_a)
        c = (first >> _HALF) ^ d ^ np.uint64(key_b)
        b, d = second & _LOW, first & _LOW
        key_a = (key_a + _KEY_STEPS[0]) & 0xFFFFFFFF
        key_b = (key_b + _KEY_STEPS[1]) & 0xFFFFFFFF
    return a, b, c, d


def check_gpu(multiprocessors: int | None, threads_per_multiprocessor: int) -> None:
    """Raises: InvalidArgumentError: no GPU has these numbers."""
    for least, number in (
        (1, 1 if multiprocessors is None else multiprocessors),
        (BLOCK, threads_per_multiprocessor),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InvalidArgumentError(
                f"noise: expected 1 or more multiprocessors of {BLOCK} or more threads, got "
                f"{multiprocessors} of {threads_per_multiprocessor}"
            )


def grid_threads(size: int, multiprocessors: int | None, threads_per_multiprocessor: int) -> int:
    """Number of GPU threads that a draw of `size` values launches.

    Args:
      size: number of values, 1 or more.
      multiprocessors: of the GPU; None stands for any GPU that has a thread for each value.
    Raises: InvalidArgumentError: `size` is more than MAX_SIZE, or more than SAFE_SIZE without
      `multiprocessors`.
    """
    if size > MAX_SIZE:
        raise InvalidArgumentError(f"noise: at most {MAX_SIZE} values in one CUDA draw, got {size}")
    wanted = -(-size // BLOCK)
    if multiprocessors is None:
        if size > SAFE_SIZE:
            raise InvalidArgumentError(
                f"noise: CUDA draws of more than {SAFE_SIZE} values depend on the GPU, got {size}; "
                "pass multiprocessors= and threads_per_multiprocessor= of the GPU to reproduce"
            )
        return wanted * BLOCK
    return min(multiprocessors * (threads_per_multiprocessor // BLOCK), wanted) * BLOCK


def normals(size: int, threads: int, *, seed: int, offset: int) -> tuple[np.ndarray, int]:
    """Draw standard normal numbers.

    Args:
      size: number of values, 1 or more.
      threads: from `grid_threads`.
      seed: 0 <= seed < 2**64.
      offset: what earlier draws of the generator have used, a multiple of 4.
    Returns: (size,) float32, and the offset for the next draw.
    """
    values = np.empty(size, dtype=np.float32)
    key = seed & 0xFFFFFFFF, seed >> 32
    turns = (size - 1) // (4 * threads) + 1
    for turn in range(turns):
        call = offset // 4 + turn
        low, high = np.uint64(call & 0xFFFFFFFF), np.uint64(call >> 32 & 0xFFFFFFFF)
        for start in range(0, threads, _CHUNK):
            thread = np.arange(start, min(start + _CHUNK, threads), dtype=np.uint64)
            at = 4 * turn * threads + start
            if at >= size:
                break
            words = philox4x32(
                (np.full_like(thread, low), np.full_like(thread, high), thread, thread >> _HALF),
                key,
            )
            for pair in (words[:2], words[2:]):
                if at < size:
                    for quarter in _box_muller(*pair):
                        room = values[at : at + len(thread)]
                        room[:] = quarter[: len(room)]
                        at += threads
    return values, offset + 4 * turns


def _box_muller(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two normal numbers from two words: that of the sine, then that of the cosine.

    On the GPU the angle is a fused multiply-add, which rounds once; float64 reproduces that.
    """
    unit = np.float32(2**-32)
    circle = np.float64(unit * np.float32(6.2831855))
    u = x.astype(np.float32) * unit + unit / np.float32(2)
    v = (y.astype(np.float32).astype(np.float64) * circle + circle / 2).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * np.log(u))
    return radius * np.sin(v), radius * np.cos(v)
