"""Speed ratios against a reference that is measured in the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import quick
from benchmarks.noise import in_numpy
from benchmarks.scaling import LIMIT, exponent
from sdexport import Package, TorchGenerator
from tests.tolerances import FLOAT64_REL


@pytest.fixture(scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.perf
@pytest.mark.parametrize("name", ["ddim", "lms", "euler", "dpmsolver++"])
def test_scheduler_is_faster_than_the_one_it_replaces(name: str, one_thread: None) -> None:
    found = quick.ratio(f"scheduler {name}", quick.scheduler_calls(name), 10)
    assert found.passed, found


@pytest.mark.perf
@pytest.mark.parametrize("known", [True, False])
def test_tokenizer_is_faster_than_the_one_it_replaces(known: bool) -> None:
    name = "known words" if known else "new words"
    found = quick.ratio(f"tokenizer, {name}", quick.tokenizer_calls(known=known))
    assert found.passed, found


@pytest.mark.perf
def test_noise_is_faster_than_pytorchs(one_thread: None) -> None:
    pytest.importorskip("sdexport.runtime.noise._noise")
    found = quick.ratio("noise", quick.noise_calls(TorchGenerator(0)))
    assert found.passed, found


@pytest.mark.perf
def test_noise_in_numpy_costs_little_more_than_pytorchs(one_thread: None) -> None:
    found = quick.ratio("noise in NumPy", quick.noise_calls(in_numpy()))
    assert found.passed, found


@pytest.mark.perf
def test_pipeline_costs_little_more_than_its_arithmetic(package: Path) -> None:
    calls = quick.image_calls(Package.load(package, verify=False))
    found = quick.ratio("image without engines", calls, 10)
    assert found.passed, found


@pytest.mark.perf
@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder"])
def test_component_is_not_slower_than_pytorch(package: Path, name: str) -> None:
    with quick.component_calls(Package.load(package, verify=False), name) as calls:
        found = quick.ratio(name, calls, 8)
    assert found.passed, found


@pytest.mark.perf
def test_winograd_convolution_is_faster_than_a_direct_one(tmp_path: Path) -> None:
    with quick.winograd_calls(tmp_path) as calls:
        found = quick.ratio("Winograd convolution", calls, 8)
    assert found.passed, found


@pytest.mark.perf
def test_nothing_outside_the_engines_grows_faster_than_linearly(package: Path) -> None:
    for sweep, exponents in quick.growth(Package.load(package, verify=False)).items():
        assert max(exponents.values()) <= LIMIT, (sweep, exponents)


def test_ratio_fails_if_slower() -> None:
    def sums(count: int) -> int:
        return sum(range(count))

    found = quick.ratio("unet", (lambda: sums(200_000), lambda: sums(50_000)))
    assert not found.passed and found.ratio > 2


def test_exponent_of_known_growth() -> None:
    sizes = (10, 20, 40, 80)
    assert exponent(sizes, [3 * n**2 for n in sizes]) == pytest.approx(2, rel=FLOAT64_REL)
    assert exponent(sizes, [5.0 + n for n in sizes]) < 1
