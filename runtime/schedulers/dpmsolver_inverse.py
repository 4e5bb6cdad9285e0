"""DPM-Solver++ from clean latents to noise.

Source: Lu et al. 2022, DPM-Solver, arXiv 2206.00927; DPM-Solver++, arXiv 2211.01095, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.dpmsolver import DPMSolverConfig, MultistepDPMSolver
from sdexport.runtime.schedulers.level_schedules import LEVEL_SCHEDULES
from sdexport.runtime.schedulers.log_snr import Level, level
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.sigma_schedules import single_sigmas, training_sigmas

# Keys of the solver in the usual direction that diffusers' inverse solver does not have.
IGNORED = (
    "final_sigmas_type",
    "rescale_betas_zero_snr",
    "sigma_max",
    "sigma_min",
    "use_lu_lambdas",
)


@dataclass(frozen=True, kw_only=True)
class DPMSolverInverseConfig(DPMSolverConfig):
    """Keys of diffusers' DPMSolverMultistepInverseScheduler."""

    final_sigmas_type: str = "sigma_min"

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("dpmsolver", "dpmsolver++", "deis"),
    }


class DPMSolverMultistepInverseScheduler(MultistepDPMSolver):
    """DPM-Solver(++)'s steps upwards, with the predictions of up to three steps."""

    inverts = True
    config: DPMSolverInverseConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        known = {key: value for key, value in config.items() if key not in IGNORED}
        self.config = DPMSolverInverseConfig.from_mapping(known)
        super().__init__(*_rising_grid(self.config, num_inference_steps))


def _rising_grid(config: DPMSolverInverseConfig, steps: int) -> tuple[np.ndarray, list[Level]]:
    """Whole timesteps, rising, and one level more.

    Where levels of a schedule round to the same timestep, it is left out, as in diffusers, so that
    the run ends at a lower level.
    """
    config.check_steps(steps)
    every = training_sigmas(config)
    clipped = int(np.searchsorted(-np.log(every)[::-1], config.lambda_min_clipped))
    noisiest = len(every) - 1 - clipped
    timesteps = _rising_timesteps(config, noisiest, steps)
    ratios, last = every[timesteps.astype(np.int64)], float(every[noisiest])
    if config.spaced_by in LEVEL_SCHEDULES:
        timesteps, ratios = (values[::-1] for values in config.training_levels(every, steps))
        last = float(ratios[-1])
    elif config.spaced_by:
        ratios = config.spaced_sigmas(float(every[-1]), float(every[0]), steps)
        single = single_sigmas(config)
        again = config.spaced_sigmas(float(single[-1]), float(single[0]), steps)
        timesteps = noise_schedules.sigma_to_timestep(again, single)
        timesteps = np.round(timesteps) if config.spaced_by == "karras" else timesteps
        timesteps, last = np.unique(timesteps), float(ratios[-1])
        timesteps = np.trunc(timesteps)
    levels = [*ratios.tolist(), last][: len(timesteps) + 1]
    return timesteps, [level(ratio) for ratio in levels]


def _rising_timesteps(config: DPMSolverInverseConfig, noisiest: int, steps: int) -> np.ndarray:
    """The lowest `steps` of `steps + 1` timesteps up to the noisiest; of trailing spacing, all."""
    if noisiest < 0:
        raise InvalidArgumentError("lambda_min_clipped leaves no timestep")
    if config.timestep_spacing == "trailing":
        ratio = config.num_train_timesteps / steps
        found = np.round(np.arange(noisiest + 1, 0, -ratio))[::-1] - 1
        return np.asarray(found[found >= 0])
    if config.timestep_spacing == "linspace":
        found = np.round(np.linspace(0, noisiest, steps + 1))[:-1]
    else:
        found = np.arange(steps) * float((noisiest + 1) // (steps + 1)) + config.steps_offset
    if found[-1] > noisiest:
        raise InvalidArgumentError(
            f"steps_offset {config.steps_offset} leads to timestep {found[-1]:g}, beyond {noisiest}"
        )
    return found
