"""DPM-Solver++ (SDE) as in k-diffusion, with its two correlated noises a step.

Source: Lu et al. 2022, arXiv 2211.01095; k-diffusion's sample_dpmpp_sde with r = 1/2.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.dpm2 import DPM2Config
from sdexport.runtime.schedulers.latent_scaling import variance_exploding
from sdexport.runtime.schedulers.linear_combination import NOISE, ORIGINAL, SAMPLE, Combination
from sdexport.runtime.schedulers.schedule_arguments import number_option
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.sigma_schedules import (
    ancestral_split,
    interleave,
    sigma_grid,
    training_sigmas,
)


class DPMSolverSDEScheduler(Scheduler):
    """A stochastic half step to the midpoint, then the whole step with the prediction there.

    Both noises of a step are increments of one Brownian motion over sigma: the half step takes its
    part down to the midpoint, the whole step the sum of both parts. diffusers draws that motion
    from torchsde with a seed of its own, so images differ from it; here each part is the noise
    passed to the step, so that the image depends on the caller's seed alone.

    There are 2 * num_inference_steps - 1 calls of the UNet: the last step has no second half.

    Args:
      s_noise: factor on the noise, 0 or more.
    """

    order = 2
    has_midpoint = True
    config: DPM2Config

    def __init__(self, config: Keys, num_inference_steps: int, *, s_noise: float = 1.0) -> None:
        self.config = DPM2Config.from_mapping(config)
        if self.config.spaced_by == "karras":  # in diffusers only the timesteps limit these levels
            self.config = replace(self.config, sigma_min=None, sigma_max=None)
        self._s_noise = number_option("s_noise", s_noise, 0, 1e9)
        every = training_sigmas(self.config)
        spaced, sigmas = sigma_grid(self.config, every, num_inference_steps)
        sigmas_next = np.append(sigmas[1:], 0.0)
        middle = np.sqrt(sigmas * sigmas_next)
        self.sigmas = interleave(sigmas, middle)
        # the start, the middle and the end of every step
        self._levels: list[list[float]] = np.stack([sigmas, middle, sigmas_next], 1).tolist()
        super().__init__(
            interleave(spaced, noise_schedules.sigma_to_timestep(middle, every)),
            variance_exploding(self.sigmas, self.config),
            kept=2,
        )
        self._weights = self._table(self._formula)
        self._first_noises = self._table(self._first_noise)

    def _split(self, i: int) -> tuple[float, float]:
        """The level that call i goes down to from the start of its step, and the noise it adds."""
        start, middle, end = self._levels[i // 2]
        down, added = ancestral_split(start, end if i % 2 else middle)
        return down, added * self._s_noise

    def _formula(self, i: int) -> Combination:
        """x' = sigma_down / sigma x + (1 - sigma_down / sigma) x0 + sigma_up z, 2211.01095, eq. 8.

        In the whole step (i odd), SAMPLE is the one before the half step, and NOISE is the second
        part of the motion; for the first see _first_noise.
        """
        start, middle, end = self._levels[i // 2]
        down, added = self._split(i)
        if i % 2:
            added *= math.sqrt((middle - end) / (start - end))
        return (1 - down / start) * ORIGINAL + down / start * SAMPLE + added * NOISE

    def _first_noise(self, i: int) -> float:
        """Weight in the whole step of the motion's first part, the noise of the half step."""
        start, middle, end = self._levels[i // 2]
        return self._split(i)[1] * math.sqrt((start - middle) / (start - end)) if i % 2 else 0.0

    def takes_noise(self, i: int) -> bool:
        return i < len(self.timesteps) - 1

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """The half step from the sample, or the whole step from the sample before the half step."""
        history, w = self._history, self._weights[i]
        start, first_noise = history.kept
        if i % 2 == 0:
            np.copyto(start, sample)
            if noise is not None:
                np.copyto(first_noise, noise)
        original = self._original(noise_pred, i, sample)
        terms = (w.sample, start), (w.original, original)
        noises = (self._first_noises[i], first_noise), (w.noise, noise)
        return StepResult(history.sum(*terms, *noises), original)
