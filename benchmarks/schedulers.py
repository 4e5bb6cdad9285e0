"""Cost of one scheduler step compared with diffusers, on (1, 4, 64, 64) float32 latents.

Run: python -m benchmarks.schedulers [--json FILE] [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.reports import save
from benchmarks.scheduler_inputs import CONFIG, SHAPE, fixed_noise
from benchmarks.timing import environment
from sdexport.runtime import schedulers
from tests.helpers.diffusers_schedulers import build_twin, twin_class
from tests.helpers.scheduler_cases import IN_DIFFUSERS

STEPS = 20
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in IN_DIFFUSERS},
    "ddim eta=1": ("ddim", {}, {"eta": 1.0}),
    "ddim v_prediction": ("ddim", {"prediction_type": "v_prediction"}, {}),
    "dpmsolver++ order 3": ("dpmsolver++", {"solver_order": 3}, {}),
    "dpmsolver++ sde": ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "unipc order 3": ("unipc", {"solver_order": 3}, {}),
}


def walk_ours(sampler: schedulers.Scheduler, seconds: list[float], *, clean: bool = False) -> None:
    """A whole run; adds the time of each step, without drawing noise, to `seconds`.

    Args:
      clean: read the clean latents too.
    """
    sample, prediction, noise = np.random.default_rng(0).standard_normal((3, *SHAPE), np.float32)
    for i in range(len(sampler.timesteps)):
        start = time.perf_counter()
        result = sampler.step(prediction, i, sample, noise)
        sample = result.prev_sample
        if clean:
            _ = result.pred_original_sample
        seconds.append(time.perf_counter() - start)


def walk_theirs(theirs: Any, options: dict[str, Any], seconds: list[float]) -> None:
    """As walk_ours, for a scheduler of diffusers."""
    arrays = np.random.default_rng(0).standard_normal((3, *SHAPE), np.float32)
    sample, prediction, _ = torch.from_numpy(arrays)
    theirs.scale_model_input(sample, theirs.timesteps[0])
    for timestep in theirs.timesteps:
        start = time.perf_counter()
        sample = theirs.step(prediction, timestep, sample, **options).prev_sample
        seconds.append(time.perf_counter() - start)


def peak(sampler: schedulers.Scheduler) -> int:
    """The most bytes that a step allocates in a second run."""
    walk_ours(sampler, [])
    sample = np.ones(SHAPE, np.float32)
    worst = 0
    tracemalloc.start()
    for i in range(len(sampler.timesteps)):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = sampler.step(sample, i, sample, sample)
        worst = max(worst, tracemalloc.get_traced_memory()[1] - before)
        del result
    tracemalloc.stop()
    return worst


def measure(name: str, config: dict[str, Any], options: dict[str, Any], rounds: int) -> Any:
    """Times of both sides in turn; the first two rounds do not count."""
    noise = torch.randn(SHAPE)
    config = CONFIG | config
    ours: list[float] = []
    with_clean: list[float] = []
    theirs: list[float] = []
    with fixed_noise(twin_class(name), noise):
        for turn in range(rounds + 2):
            twin, step_options = build_twin(name, config, STEPS, options)
            sampler = schedulers.create(name, config, STEPS, **options)
            walk_theirs(twin, step_options, theirs if turn > 1 else [])
            walk_ours(sampler, ours if turn > 1 else [])
            walk_ours(sampler, with_clean if turn > 1 else [], clean=True)

    def summary(seconds: list[float]) -> dict[str, float]:
        low, middle, high = np.percentile(seconds, (20, 50, 80)) * 1e6
        return {"median_us": middle, "p20_us": low, "p80_us": high}

    results = 2 * int(np.prod(SHAPE)) * 4
    return {
        "ours": summary(ours),
        "ours_with_clean_latents": summary(with_clean),
        "diffusers": summary(theirs),
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "ratio_with_clean_latents": statistics.median(with_clean) / statistics.median(theirs),
        "peak_of_results": peak(schedulers.create(name, config, STEPS, **options)) / results,
        "steps_timed": len(ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    with torch.inference_mode():
        for label, (name, config, options) in VARIANTS.items():
            figures[label] = found = measure(name, config, options, arguments.rounds)
            print(
                f"{label:22} {found['ours']['median_us']:7.1f} us  "
                f"diffusers {found['diffusers']['median_us']:7.1f} us  "
                f"ratio {found['ratio']:.2f} ({found['ratio_with_clean_latents']:.2f} with clean "
                f"latents)  peak {found['peak_of_results']:.2f} of the results"
            )
    report = {
        **environment("numpy", "torch", "diffusers"),
        "shape": SHAPE,
        "dtype": "float32",
        "threads": 1,
        "steps": STEPS,
        "schedulers": figures,
    }
    save(report, arguments.json)


if __name__ == "__main__":
    main()
