"""PyTorch's kernel of `torch.randn` on a CUDA device, emulated one thread at a time.

Written from the kernel's arithmetic and cuRAND's documentation, in plain integers, and shares no
code with sdexport.runtime.noise.

Source: ATen/native/cuda/DistributionTemplates.h (calc_execution_policy and
distribution_elementwise_grid_stride_kernel); curand_init and curand_normal4 of cuRAND's Philox.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK, UNROLL, WORDS_PER_CALL = 256, 4, 4


@dataclass(frozen=True)
class Gpu:
    """A GPU: its multiprocessors, and the threads that can be resident on each."""

    name: str
    multiprocessors: int
    threads_per_multiprocessor: int


GPUS = (
    Gpu("H100", 132, 2048),
    Gpu("RTX 4090", 128, 1536),
    Gpu("RTX 5090", 170, 1536),
    Gpu("A100", 108, 2048),
    Gpu("T4", 40, 1024),
    Gpu("RTX 3060", 28, 1536),
)


@dataclass(frozen=True)
class Launch:
    """How a draw of `size` values is launched. threads: of all blocks together."""

    size: int
    threads: int

    @classmethod
    def of(cls, size: int, gpu: Gpu) -> Launch:
        blocks = (size + BLOCK - 1) // BLOCK
        resident = gpu.multiprocessors * (gpu.threads_per_multiprocessor // BLOCK)
        return cls(size, min(resident, blocks) * BLOCK)

    @property
    def stride(self) -> int:
        """How far one turn of the grid-stride loop advances."""
        return self.threads * UNROLL

    @property
    def words(self) -> int:
        """By how much the generator's offset grows: the words that a thread may have used."""
        return ((self.size - 1) // self.stride + 1) * WORDS_PER_CALL


def values_of_thread(
    launch: Launch, thread: int, *, seed: int, offset: int
) -> Iterator[tuple[int, float]]:
    """The positions that one thread writes, and its values, in the kernel's order."""
    counter = offset // WORDS_PER_CALL
    rounded = ((launch.size - 1) // launch.stride + 1) * launch.stride
    for start in range(thread, rounded, launch.stride):
        words = _philox([counter % 2**32, counter >> 32, thread % 2**32, thread >> 32], seed)
        counter += 1
        normals = [*_box_muller(*words[:2]), *_box_muller(*words[2:])]
        for lane, value in enumerate(normals):
            position = start + launch.threads * lane
            if position < launch.size:
                yield position, value


def _philox(counter: list[int], seed: int) -> list[int]:
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            second >> 32 ^ counter[1] ^ key[0],
            second % 2**32,
            first >> 32 ^ counter[3] ^ key[1],
            first % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def _box_muller(x: int, y: int) -> tuple[float, float]:
    radius = math.sqrt(-2 * math.log((x + 0.5) / 2**32))
    angle = 2 * math.pi * (y + 0.5) / 2**32
    return radius * math.sin(angle), radius * math.cos(angle)
