"""Noise compared with torch.randn, one thread each: `python -m benchmarks.noise [--json FILE]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import timing
from sdexport import TorchGenerator
from sdexport.runtime.noise import _noise_numpy, torch_generator
from tests.tolerances import NOISE_ABS

SHAPES = ((1, 4, 64, 64), (4, 4, 128, 128))


def draws(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Calls that draw from existing generators; ours are compared with PyTorch's first."""
    theirs = torch.Generator().manual_seed(0)
    expected = torch.randn(shape, generator=theirs).numpy()
    calls: dict[str, Callable[[], object]] = {
        "torch cpu": lambda: torch.randn(shape, generator=theirs)
    }
    for name, ours in (("runtime cpu", TorchGenerator(0)), ("runtime cpu, NumPy", in_numpy())):
        difference = np.abs(ours.randn(shape) - expected).max()
        if difference > NOISE_ABS:
            raise RuntimeError(f"{name}: the noise differs by {difference}")
        calls[name] = lambda ours=ours: ours.randn(shape)
    return calls


def in_numpy() -> TorchGenerator:
    """A generator that draws in NumPy, as where no compiler was found."""
    with mock.patch.object(torch_generator, "source", _noise_numpy):
        return TorchGenerator(0)


def cuda_draw(shape: tuple[int, ...]) -> Callable[[], object]:
    cuda = TorchGenerator(0, "cuda", multiprocessors=108)
    return lambda: cuda.randn(shape)


def with_new_generator(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Calls that also create the generator, as for an image with a seed."""
    return {
        "torch cpu": lambda: torch.randn(shape, generator=torch.Generator().manual_seed(3)),
        "runtime cpu": lambda: TorchGenerator(3).randn(shape),
    }


def main() -> None:
    args = timing.parser("noise", __doc__).parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for shape in SHAPES:
        title = "x".join(map(str, shape))
        calls = draws(shape) | {"runtime cuda stream": cuda_draw(shape)}
        rows[title] = timing.alternate(calls, args.repeats)
        rows[f"{title}, generator made anew"] = timing.alternate(
            with_new_generator(shape), args.repeats
        )
    report = {
        "dtype": "float32",
        "threads": 1,
        **timing.environment("numpy", "torch"),
        "compiled": torch_generator.source is not _noise_numpy,
        "noise": rows,
    }
    timing.show_and_save(report, rows, args)


if __name__ == "__main__":
    main()
