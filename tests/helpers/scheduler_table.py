"""Write docs/schedulers.md: difference of the schedulers from diffusers, and cost of a step.

Run: python -m tests.helpers.scheduler_table BENCHMARK.json
The benchmark's figures are those of `python -m benchmarks.schedulers --json BENCHMARK.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from sdexport.runtime import schedulers
from tests.helpers.diffusers_schedulers import compare
from tests.helpers.k_diffusion_samplers import RUNS, random_run
from tests.helpers.k_diffusion_samplers import SAMPLERS as K_DIFFUSION
from tests.helpers.scheduler_cases import BETAS, IN_DIFFUSERS, grid, steps_of
from tests.tolerances import (
    SCHEDULER_FLOAT32_REL,
    SCHEDULER_FLOAT32_STEEP_REL,
    SCHEDULER_FLOAT64_REL,
)

PAGE = Path(__file__).parents[2] / "docs" / "schedulers.md"
INTRODUCTION = """# Schedulers

<!-- Written by python -m tests.helpers.scheduler_table BENCHMARK.json; do not edit. -->

Every scheduler compared with the class of that name in diffusers {diffusers} (torch {torch},
NumPy {numpy}). Short names, class names and the [aliases](#aliases) below are accepted, and a
`scheduler_config.json` of diffusers can be used unchanged.

- **Cases** is the number of whole runs of 1 to 50 steps, with a nonlinear function in place of the
  UNet, for all timestep spacings, prediction types and options in the table below.
- **float64** is the largest difference in any of them, relative to the largest value of the
  latents, from diffusers with its tables in float64: our own error.
- **float32** is the same in float32, from unchanged diffusers, whose tables are float32: nearly
  all of the difference is due to those tables. The median of the cases is in brackets.
- **Step** is our time for a step on (1, 4, 64, 64) float32 latents and, in brackets, the ratio of
  it to diffusers' time (one thread, median). **Clean** is that ratio if `pred_original_sample` is
  read too, which diffusers always computes and most schedulers here compute when it is read.

The bounds in the tests are {wide:.0e} and {single:.0e}. For the beta schedules
`squaredcos_cap_v2` and `exp` the float32 bound is {steep:g}: their noise levels begin in the
thousands, which costs float32 most of its digits. The largest float32 figures of Heun, Euler
ancestral and DEIS are from these schedules.

| name | class in diffusers | cases | float64 | float32 | step | clean |
|---|---|---:|---:|---:|---:|---:|
"""
OWN = """
## Samplers that diffusers does not have

Compared with k-diffusion's functions in {runs} random runs each, with the same noise. The figure is
the largest difference in float64, relative to the largest value of the latents.

| name | function in k-diffusion | float64 |
|---|---|---:|
"""
SCHEDULES = """
## Schedules of noise levels

`schedule` is an option of every scheduler that works on noise levels, and a key of its
configuration. It replaces the levels that `timestep_spacing` gives.

| schedule | levels |
|---|---|
| `timesteps` | those of `timestep_spacing`, also where the \
configuration sets `use_karras_sigmas` and the like |
| `karras`, `exponential`, `beta` | as `use_karras_sigmas`, `use_exponential_sigmas` and \
`use_beta_sigmas` in diffusers |
| `normal` | even timesteps from the last to the first of the training |
| `sgm_uniform` | even timesteps; the step after the last would be the first of the training |
| `simple` | even whole timesteps, counted from the last |
| `ddim_uniform` | every so many whole timesteps from the second on; may have a few steps more |
| `beta_timesteps` | whole timesteps at quantiles of a beta distribution, ComfyUI's `beta` |
| `kl_optimal` | even in the arctangent of the level |
| `linear_quadratic` | slowly at first, then a parabola to zero |
| `polyexponential` | even in the logarithm, over all levels of the training |
| `sd_turbo` | timesteps 999, 899 and so on, 1 to 10 steps, for SD Turbo |
| `align_your_steps`, `align_your_steps_xl` | the published tables for SD 1.5 and SDXL, for other \
numbers of steps than ten linear in the logarithm |

The first two rows are compared with diffusers, the others with their definitions in ComfyUI and
AUTOMATIC1111 (5e-10). These run at fractional timesteps, as in k-diffusion. SciPy is not needed.
"""
NOTES = """
## Where the behaviour differs from diffusers

| configuration | diffusers | here |
|---|---|---|
| trailing spacing, some numbers of steps | an extra timestep, -1, at the end | no extra timestep |
| PNDM with its warm-up, fewer than 4 steps | an error about array shapes | a clear error |
| `sde-dpmsolver` of order 3 | an error about an unset variable | a clear error |
| DDPM `fixed_large_log` | NaN | as `fixed_large` |
| UniPC `bh1`, or `predict_x0` false, ending at zero noise | NaN | works |
| UniPC without `lower_order_final`, ending at zero noise | NaN | a clear error |
| `rescale_betas_zero_snr` with epsilon at pure noise | NaN, or noise if clipped | \
a clear error |
| log-SNR solvers, as many steps as training timesteps | NaN or an error | a clear error |
| DPM-Solver++, Karras, ending at `sigma_min`, order 3 or Heun | NaN | works |
| leading spacing with `steps_offset`, 1000 steps | an index error, or the last timestep twice | \
a clear error |
| learned variances, flow matching, `solver_p` | supported | an error |

Three properties are kept from diffusers, as images would differ otherwise: PNDM and LMS use the
weights of their step index in a run that begins within the schedule (image to image), the
third-order term of `sde-dpmsolver++` has the sign that it has in diffusers, and an inversion with
`dpmsolver++_inverse` and Karras's levels leaves out levels that have the same whole timestep.

The first of these leaves noise in the image, most at a low strength. A warning says so for LMS and
for PNDM with its warm-up. The key `restart_history` of `lms` and `pndm` begins their history with
the run, which removes all noise.

Images of `dpmsolver_sde` differ from those of diffusers, which draws a Brownian motion from
torchsde with a seed of its own; here the increments are drawn from the seed of the image. The
figures above are for the same motion on both sides.
"""


def alias_rows() -> str:
    """Rows of a table: each alias, its scheduler, and the keys that it sets."""
    return "".join(
        f"| `{alias}` | `{name}` | {presets_text(keys)} |\n"
        for alias, (name, keys) in schedulers.ALIASES.items()
    )


def presets_text(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}` {json.dumps(value)}" for key, value in keys.items())


def options_text(name: str) -> str:
    """Every key and option that the grid sets for a scheduler, with its values."""
    found: dict[str, list[str]] = {}
    for config, options in grid(name, full=True):
        for key, value in {**config, **options}.items():
            if BETAS.get(key) == value or key.startswith("_"):
                continue
            text = "a list" if isinstance(value, list) else json.dumps(value)
            values = found.setdefault(key, [])
            if text not in values:
                values.append(text)
    return "; ".join(f"`{key}` {', '.join(values)}" for key, values in sorted(found.items()))


def deviations(name: str) -> tuple[np.ndarray, np.ndarray]:
    cases = [
        (config, steps, options)
        for config, options in grid(name, full=True)
        for steps in steps_of(config, options)
    ]
    wide = [compare(name, *case, dtype=np.float64) for case in cases]
    single = [compare(name, *case, dtype=np.float32) for case in cases]
    return np.array(wide), np.array(single)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "benchmark", type=Path, help="the report of python -m benchmarks.schedulers --json"
    )
    figures = json.loads(parser.parse_args().benchmark.read_text())["schedulers"]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    page = INTRODUCTION.format(
        diffusers=diffusers.__version__,
        torch=torch.__version__,
        numpy=np.__version__,
        wide=SCHEDULER_FLOAT64_REL,
        single=SCHEDULER_FLOAT32_REL,
        steep=SCHEDULER_FLOAT32_STEEP_REL,
    )
    for name in IN_DIFFUSERS:
        wide, single = deviations(name)
        cost = figures[name]
        page += (
            f"| `{name}` | {schedulers.class_name(name)} | {len(wide)} | {wide.max():.1e} "
            f"| {single.max():.1e} ({np.median(single):.0e}) "
            f"| {cost['ours']['median_us']:.0f} µs ({cost['ratio']:.2f}) "
            f"| {cost['ratio_with_clean_latents']:.2f} |\n"
        )
    page += f"\n## Aliases\n\n| alias | scheduler | sets |\n|---|---|---|\n{alias_rows()}"
    page += "\n## Options in the comparison\n\n| name | keys and values |\n|---|---|\n"
    page += "".join(f"| `{name}` | {options_text(name)} |\n" for name in IN_DIFFUSERS)
    page += OWN.format(runs=RUNS)
    for name, function in K_DIFFUSION.items():
        page += (
            f"| `{name}` | {function} | {max(map(partial(random_run, name), range(RUNS))):.1e} |\n"
        )
    draft = PAGE.with_name(f"{PAGE.name}.part")
    draft.write_text(page + SCHEDULES + NOTES, encoding="utf-8")
    draft.replace(PAGE)


if __name__ == "__main__":
    main()
