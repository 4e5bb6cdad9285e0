"""CUDA noise against torch on the GPU that is there."""

from __future__ import annotations

import pytest
import torch

from sdexport import TorchGenerator
from sdexport.runtime.noise import philox
from tests.tolerances import CUDA_NOISE_ABS, assert_close

pytestmark = pytest.mark.gpu
SIZES = [1, 3, 255, 256, 257, 16384, 4 * 64 * 96, 65536, 5]


def gpu() -> dict[str, int]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "multiprocessors": properties.multi_processor_count,
        "threads_per_multiprocessor": properties.max_threads_per_multi_processor,
    }


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, 2**32, 2**63 + 5, -1])
def test_cuda_noise_equals_torch_in_a_stream_of_sizes(seed: int) -> None:
    theirs = torch.Generator("cuda").manual_seed(seed)
    ours = TorchGenerator(seed, device="cuda", **gpu())
    for size in [*SIZES, *reversed(SIZES)]:
        expected = torch.randn(size, generator=theirs, device="cuda").cpu().numpy()
        assert_close(ours.randn((size,)), expected, abs_=CUDA_NOISE_ABS)


@pytest.mark.parametrize("factor", [1, 2, 3.5, 4, 4.01, 9])
def test_cuda_noise_equals_torch_beyond_one_value_a_thread(factor: float) -> None:
    threads = gpu()["multiprocessors"] * gpu()["threads_per_multiprocessor"]
    theirs = torch.Generator("cuda").manual_seed(7)
    ours = TorchGenerator(7, device="cuda", **gpu())
    for size in (int(factor * threads) - 3, 100):
        expected = torch.randn(size, generator=theirs, device="cuda").cpu().numpy()
        assert_close(ours.randn((size,)), expected, abs_=CUDA_NOISE_ABS)


def test_cuda_noise_of_a_large_gpu_needs_no_parameters() -> None:
    if gpu()["multiprocessors"] * gpu()["threads_per_multiprocessor"] < philox.SAFE_SIZE:
        pytest.skip("this GPU has fewer threads than the default assumes")
    expected = torch.randn(
        philox.SAFE_SIZE, generator=torch.Generator("cuda").manual_seed(3), device="cuda"
    )
    actual = TorchGenerator(3, device="cuda").randn((philox.SAFE_SIZE,))
    assert_close(actual, expected.cpu().numpy(), abs_=CUDA_NOISE_ABS)
