"""CUDA noise compared with an emulation of PyTorch's kernel, on the GPUs that people have."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sdexport import TorchGenerator
from sdexport.runtime.noise import philox
from tests.helpers.cuda_kernel import BLOCK, GPUS, Gpu, Launch, values_of_thread
from tests.tolerances import CUDA_NOISE_ABS, assert_close

SEED = 2**40 + 12345
SAMPLED = 60
"""Threads of a launch whose every value is compared, next to those at the edges."""


def some_threads(launch: Launch) -> list[int]:
    last, rest = launch.threads - 1, launch.size % launch.threads
    edges = {0, 1, BLOCK - 1, BLOCK, last - BLOCK, last, rest - 1, rest}
    drawn = random.Random(launch.size).sample(range(launch.threads), min(SAMPLED, launch.threads))
    return sorted(t for t in {*edges, *drawn} if 0 <= t <= last)


def compare(generator: TorchGenerator, gpu: Gpu, size: int, offset: int) -> int:
    """Compare one draw; returns the offset of the next one."""
    launch = Launch.of(size, gpu)
    ours = generator.randn((size,))
    pairs = [
        pair
        for thread in some_threads(launch)
        for pair in values_of_thread(launch, thread, seed=SEED, offset=offset)
    ]
    positions, expected = zip(*pairs, strict=True)
    assert_close(ours[list(positions)], np.array(expected), abs_=CUDA_NOISE_ABS)
    return offset + launch.words


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_cuda_noise_equals_the_kernel_on(gpu: Gpu) -> None:
    """A stream of draws with fewer values than the GPU has threads, as many, and more."""
    threads = gpu.multiprocessors * gpu.threads_per_multiprocessor // BLOCK * BLOCK
    generator = TorchGenerator(
        SEED,
        "cuda",
        multiprocessors=gpu.multiprocessors,
        threads_per_multiprocessor=gpu.threads_per_multiprocessor,
    )
    offset = 0
    for size in (1, 16384, threads - 1, threads, threads + 1, 4 * threads, 4 * threads + 1, 257):
        offset = compare(generator, gpu, size, offset)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1100, 1700, 2048, 2049, 5000])
def test_cuda_noise_of_several_values_per_thread(size: int) -> None:
    """Every value, on a GPU of two blocks whose threads are no multiple of a block."""
    gpu = Gpu("tiny", 1, 512 + 100)
    generator = TorchGenerator(SEED, "cuda", multiprocessors=1, threads_per_multiprocessor=612)
    launch = Launch.of(size, gpu)
    for offset in (0, launch.words):
        expected = np.full(size, np.nan)
        for thread in range(launch.threads):
            for position, value in values_of_thread(launch, thread, seed=SEED, offset=offset):
                expected[position] = value
        assert_close(generator.randn((size,)), expected, abs_=CUDA_NOISE_ABS)


def test_cuda_noise_needs_no_gpu_up_to_a_size_that_large_gpus_draw_alike() -> None:
    large = [g for g in GPUS if g.name not in ("T4", "RTX 3060")]
    assert {Launch.of(philox.SAFE_SIZE, gpu).threads for gpu in large} == {philox.SAFE_SIZE}
    compare(TorchGenerator(SEED, "cuda"), large[0], philox.SAFE_SIZE, 0)
