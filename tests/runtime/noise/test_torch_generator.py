"""TorchGenerator: seeds, streams, copies. Equality with torch is in tests/parity and tests/gpu."""

from __future__ import annotations

import copy
import hashlib
import importlib
import pickle
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sdexport import InvalidArgumentError, TorchGenerator
from sdexport.runtime.noise import _noise_numpy, philox, torch_generator
from tests.tolerances import (
    BOX_MULLER_ABS,
    CUDA_NOISE_PRINTED_ABS,
    NOISE_ABS,
    assert_close,
)


def test_noise_module_is_compiled_if_there_is_a_compiler() -> None:
    compiler = (sysconfig.get_config_var("CC") or "").split(" ")[0]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    limited_api = not sysconfig.get_config_var("Py_GIL_DISABLED")
    if not (compiler and shutil.which(compiler) and header.exists() and limited_api):
        pytest.skip("no C compiler, or no limited API")
    importlib.import_module("sdexport.runtime.noise._noise")  # if this fails, install again


def test_mt19937_words_equal_the_cpp_standard(noise_source: ModuleType) -> None:
    """The 10,000th word of the default seed, which C++11 prescribes for std::mt19937 (26.5.5)."""
    words = np.empty(10_000, dtype=np.uint32)
    stream = noise_source.MT19937(5489)
    for start in range(0, 10_000, 700):
        stream.draw(words[start : start + 700])
    assert words[0] == 3499211612 and words[-1] == 4123659995


def all_words() -> np.ndarray:
    """(2**25,): blocks in which every 24-bit number is once a radius and once an angle."""
    numbers = np.arange(2**24, dtype=np.uint32)
    pairs = (
        numbers,
        numbers * np.uint32(0x9E3779B1) & np.uint32(0xFFFFFF),
    )  # an odd factor permutes them
    return np.stack([row.reshape(-1, 8) for row in pairs], axis=1).reshape(-1)


def test_box_muller_of_every_radius_and_angle(noise_source: ModuleType) -> None:
    words = all_words()
    for start in range(0, len(words), 2**20):
        block = words[start : start + 2**20]
        pairs = block.reshape(-1, 2, 8).astype(np.float32) * np.float32(2.0**-24)
        radius = np.sqrt(-2 * np.log(1 - pairs[:, 0].astype(np.float64)))
        angle = (pairs[:, 1] * np.float32(2 * np.pi)).astype(np.float64)
        block |= np.uint32(0xFF000000)  # the upper bits are ignored
        noise_source.box_muller(block)
        found = block.view(np.float32).reshape(-1, 2, 8)
        assert_close(found[:, 0], radius * np.cos(angle), abs_=BOX_MULLER_ABS)
        assert_close(found[:, 1], radius * np.sin(angle), abs_=BOX_MULLER_ABS)


SAME_BITS = "204cc0d5bbb25846f73aca3d99f935e9deca60a65b415b30dd1b8019d17c2cac"


def test_compiled_box_muller_gives_the_same_bits_on_every_processor() -> None:
    compiled = pytest.importorskip("sdexport.runtime.noise._noise")
    words = all_words()
    compiled.box_muller(words)
    assert hashlib.sha256(words.astype("<u4").tobytes()).hexdigest() == SAME_BITS


def test_compiled_noise_rejects_other_arrays() -> None:
    compiled = pytest.importorskip("sdexport.runtime.noise._noise")
    fixed = np.zeros(16, dtype=np.float32)
    fixed.flags.writeable = False
    for call in (compiled.MT19937(0).draw, compiled.box_muller):
        unaligned = np.frombuffer(bytearray(65), np.float32, offset=1)
        for wrong in (np.zeros(16, np.float64), np.zeros(7, np.uint8), unaligned):
            with pytest.raises(ValueError, match="items of 4 bytes"):
                call(wrong)
        for wrong in (fixed, np.zeros((16, 2), np.float32)[:, 0]):
            with pytest.raises((ValueError, BufferError)):
                call(wrong)
        for wrong in (None, 5, "text", [0.0] * 16):
            with pytest.raises(TypeError):
                call(wrong)
    with pytest.raises(ValueError, match="a multiple of 16 aligned items"):
        compiled.box_muller(np.zeros(17, np.float32))
    for seed in (None, "1", 1.5):
        with pytest.raises(TypeError):
            compiled.MT19937(seed)


@pytest.mark.usefixtures("noise_source")
def test_randn_advances_the_stream() -> None:
    generator = TorchGenerator(0)
    first, second = generator.randn((1, 4, 8, 8)), generator.randn((1, 4, 8, 8))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, TorchGenerator(0).randn((1, 4, 8, 8)))
    assert first.dtype == np.float32


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_copies_continue_the_stream(noise_source: ModuleType, device: str) -> None:
    generator = TorchGenerator(2**40 + 1, device)
    for size in (5, 70_001, 1, 3):  # both algorithms, and one number is kept
        generator.randn((size,))
    pickled = pickle.dumps(generator)
    copies = [copy.copy(generator), copy.deepcopy(generator), pickle.loads(pickled)]
    expected = [generator.randn((size,)) for size in (2, 40_000)]
    for other in copies:
        for values in expected:
            np.testing.assert_array_equal(other.randn(values.shape), values)


def test_pickle_continues_with_the_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = pytest.importorskip("sdexport.runtime.noise._noise")
    monkeypatch.setattr(torch_generator, "source", compiled)
    generator = TorchGenerator(1)
    generator.randn((37,))
    pickled, expected = pickle.dumps(generator), generator.randn((100,))
    monkeypatch.setattr(torch_generator, "source", _noise_numpy)
    assert_close(pickle.loads(pickled).randn((100,)), expected, abs_=NOISE_ABS)


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64, 10**30])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="-2\\*\\*63 <= seed < 2\\*\\*64"):
        TorchGenerator(seed)


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_seed_of_another_type(seed: object) -> None:
    with pytest.raises(InvalidArgumentError, match="expected an integer"):
        TorchGenerator(seed)  # type: ignore[arg-type]


def test_generator_rejects_other_devices_gpus_and_shapes() -> None:
    with pytest.raises(ValueError, match="choose one of cpu, cuda"):
        TorchGenerator(0, device="tpu")
    with pytest.raises(ValueError, match="expected 1 or more multiprocessors"):
        TorchGenerator(0, "cuda", multiprocessors=0)
    with pytest.raises(ValueError, match="of 256 or more threads"):
        TorchGenerator(0, "cuda", threads_per_multiprocessor=0)
    with pytest.raises(ValueError, match=r"got 1\.5 of 2048"):
        TorchGenerator(0, "cuda", multiprocessors=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be negative"):
        TorchGenerator(0).randn((2, -1))
    assert TorchGenerator(0).randn((0, 4)).shape == (0, 4)
    assert TorchGenerator(0, "cuda").randn((0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_equals_the_published_test_vectors(counter: str, key: str, expected: str) -> None:
    """From Random123, by the authors of Philox."""
    words = [np.array([int(word, 16)], dtype=np.uint64) for word in counter.split()]
    first, second = (int(word, 16) for word in key.split())
    result = philox.philox4x32((words[0], words[1], words[2], words[3]), (first, second))
    assert [f"{word[0]:08x}" for word in result] == expected.split()


CUDA_SEED_0 = (
    """
 -0.9247 -0.4253 -2.6438  0.1452 -0.1209 -0.5797 -0.6229 -0.3284 -1.0745 -0.3631
 -1.6711  2.2655  0.3117 -0.1842  1.2866  1.1820 -0.1271  1.2169  1.4353  1.0605
 -0.4941 -1.4244 -0.7244 -1.2973  0.0697 -0.0074  1.8969  0.6878 -0.0779 -0.8373
  1.3506 -0.2879 -0.5965 -0.3283 -0.9086 -0.8059 -0.7407 -0.0504  0.5435  1.5150
  0.0141  0.4532  1.6349  0.7124 -0.1806  1.0252 -1.4622 -0.7554 -0.1836  0.3824
  0.3918 -0.0830  0.8971 -1.1123  0.1116  0.4863 -0.5499 -0.3231 -0.5469  0.9049
  0.2837  0.1210  0.4730 -1.0823 -0.0334 -0.9734  0.9559 -1.1795 -1.0064  0.1160
  0.6852 -0.4124 -0.6738 -0.5404  0.6898 -1.5517  0.3805 -0.0436  0.3597 -0.5043
""",
    """
  0.1808 -0.5523  0.9238 -0.7350  1.3800  0.8676  0.1297 -0.9406  0.8109  0.8821
""",
    """
  2.5441 -0.7163 -0.4934  0.1267  0.1014 -0.4035  0.9023  0.8099 -0.6884  0.1372
  1.0377  0.0925 -0.3752 -0.0908  2.0639 -1.8164 -0.2719  0.2811 -1.0399  0.7765
  0.8814  0.0444 -1.4870  1.1334  1.3268 -1.2616  0.9501 -0.6558  0.9098 -0.6290
 -0.6587  2.0811  1.4151 -0.3091 -0.2055  2.0562 -0.0490 -0.6361 -0.5359 -0.1310
 -0.2945  1.2275  1.0549  0.3576  1.6378 -0.2310  0.7883 -0.0807 -0.3924  1.2673
  1.0420 -0.4945 -1.1637  1.5740  0.7116  0.6104  1.2852 -0.6533  1.1171 -1.0067
  1.2912  1.6028  0.1332  1.0703 -1.1161 -0.8396 -3.6680  0.8189  0.1255 -0.7691
  0.1552 -0.8782 -0.4734  0.9690 -1.9985  0.1030  0.8580  0.7625 -1.2587 -0.8183
""",
)


def test_cuda_noise_equals_a_recorded_stream() -> None:
    """Three successive draws of torch 2 on a CUDA device after manual_seed(0), as printed."""
    generator = TorchGenerator(0, device="cuda")
    for text in CUDA_SEED_0:
        expected = np.array(text.split(), dtype=np.float64)
        assert_close(generator.randn(expected.shape), expected, abs_=CUDA_NOISE_PRINTED_ABS)


def test_cuda_noise_equals_the_published_values() -> None:
    """The first values of seed 0 in the documentation of AUTOMATIC1111, which has more digits."""
    expected = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564]
    expected += [-0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497]
    assert_close(TorchGenerator(0, "cuda").randn((12,)), np.array(expected), abs_=NOISE_ABS)


def test_cuda_noise_is_the_same_on_every_gpu_with_enough_threads() -> None:
    shape = (1, 4, 96, 64)
    expected = TorchGenerator(5, "cuda").randn(shape)
    small = TorchGenerator(5, "cuda", multiprocessors=24, threads_per_multiprocessor=1024)
    smaller = TorchGenerator(5, "cuda", multiprocessors=23, threads_per_multiprocessor=1024)
    np.testing.assert_array_equal(small.randn(shape), expected)
    assert not np.array_equal(smaller.randn(shape), expected)


def test_cuda_noise_needs_the_gpu_for_large_draws() -> None:
    generator = TorchGenerator(0, "cuda")
    assert generator.randn((3, 4, 128, 128)).shape == (3, 4, 128, 128)
    with pytest.raises(ValueError, match=r"depend on the GPU, got 262144; pass multiprocessors="):
        generator.randn((4, 4, 128, 128))
    with pytest.raises(ValueError, match="at most 536870912 values"):
        TorchGenerator(0, "cuda", multiprocessors=108).randn((2**29 + 1,))
