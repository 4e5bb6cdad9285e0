"""Noise beside torch.randn, one thread each: `python -m benchmarks.noise [--json FILE]`."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import timing
from runtime import TorchGenerator

SHAPES = ((1, 4, 64, 64), (4, 4, 128, 128))


def main() -> None:
    args = timing.parser("noise", __doc__).parse_args()
    torch.set_num_threads(1)
    rows = {}
    for shape in SHAPES:
        theirs, ours = torch.Generator().manual_seed(0), TorchGenerator(0)
        cuda = TorchGenerator(0, "cuda", multiprocessors=108)
        difference = np.abs(ours.randn(shape) - torch.randn(shape, generator=theirs).numpy()).max()
        if difference > 1e-6:
            raise RuntimeError(f"the noise differs by {difference}")
        rows["x".join(map(str, shape))] = timing.alternate(
            {
                "runtime cpu": lambda shape=shape, ours=ours: ours.randn(shape),
                "torch cpu": lambda shape=shape, theirs=theirs: torch.randn(
                    shape, generator=theirs
                ),
                "runtime cuda stream": lambda shape=shape, cuda=cuda: cuda.randn(shape),
            },
            args.repeats,
        )
    report = {
        "dtype": "float32",
        "threads": 1,
        **timing.environment("numpy", "torch"),
        "noise": rows,
    }
    timing.show_and_save(report, rows, args)


if __name__ == "__main__":
    main()
