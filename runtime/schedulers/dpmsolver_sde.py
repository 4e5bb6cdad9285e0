"""DPM-Solver++ (SDE) as k-diffusion writes it, with its two correlated noises a step.

Source: Lu et al. 2022, arXiv 2211.01095; k-diffusion's sample_dpmpp_sde with r = 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    require_finite,
    ve_original_weights,
)
from sdexport.runtime.schedulers.config import number_option
from sdexport.runtime.schedulers.dpm2 import DPM2Config
from sdexport.runtime.schedulers.heun import check_pair
from sdexport.runtime.schedulers.sigmas import (
    ancestral_split,
    input_scales,
    interleave,
    sigma_grid,
    start_sigma,
    training_sigmas,
)


class DPMSolverSDEScheduler:
    """A stochastic half step to the midpoint, then the whole step with what is seen there.

    Both noises of a step come from one Brownian motion over sigma: the half step uses its part
    down to the midpoint, the whole step the sum of both parts. diffusers takes that motion from
    torchsde with a seed of its own, so pictures differ from it; here each part is drawn from the
    noise that is passed, so that the picture depends on the seed alone.

    Args:
      config: keys of diffusers' DPMSolverSDEScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps; 2 steps - 1 calls of the UNet.
      s_noise: factor on the noise.
    Raises: ValueError: a value out of range.
    """

    order = 2

    def __init__(
        self, config: Mapping[str, Any], num_inference_steps: int, *, s_noise: float = 1.0
    ) -> None:
        self.config = DPM2Config.from_mapping(config)
        if self.config.use_karras_sigmas:  # these are bounded by the timesteps alone
            self.config = replace(self.config, sigma_min=None, sigma_max=None)
        self._s_noise = number_option("s_noise", s_noise, 0, 1e9)
        every = training_sigmas(self.config)
        spaced, sigmas = sigma_grid(self.config, every, num_inference_steps)
        middle = np.sqrt(sigmas * np.append(sigmas[1:], 0.0))
        self.timesteps = interleave(spaced, noise_schedules.sigma_to_timestep(middle, every))
        self.sigmas = interleave(sigmas, middle)
        self._weights = [
            self._step_weights(i, np.append(sigmas, 0.0).tolist(), float(middle[i // 2]))
            for i in range(len(self.timesteps))
        ]
        require_finite("DPMSolverSDEScheduler", self._weights)
        self._scales = input_scales(self.sigmas)
        self._memory = Memory(2)  # the sample and the noise of the first half

    def _step_weights(self, i: int, sigmas: list[float], middle: float) -> tuple[float, ...]:
        """Of (sample, noise_pred), then (start, clean), then the two halves of the noise."""
        start, goal = sigmas[i // 2], sigmas[i // 2 + 1]
        down, added = ancestral_split(start, goal if i % 2 else middle)
        added *= self._s_noise
        first, second = added, 0.0
        if i % 2:
            first *= math.sqrt((start - middle) / (start - goal))
            second = added * math.sqrt((middle - goal) / (start - goal))
        seen = ve_original_weights(self.config.prediction_type, float(self.sigmas[i]))
        return (*seen, down / start, 1 - down / start, first, second)

    @property
    def init_noise_sigma(self) -> float:
        return start_sigma(self.config, self.sigmas)

    def takes_noise(self, i: int) -> bool:
        return i < len(self.timesteps) - 1

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample * self._scales[i]

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Half a step; see Scheduler.step.

        Raises: ValueError: also, an odd index that does not follow on.
        """
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b, same, clean, first, second) = self._memory, self._weights[i]
        check_pair(memory, i, sample)
        original = memory.sum((a, sample), (b, noise_pred))
        if noise is None or not self.takes_noise(i):
            return StepResult(memory.sum((same, sample), (clean, original)), original)
        if i % 2:
            noises = (first, memory[1]), (second, noise)
            return StepResult(memory.sum((same, memory[0]), (clean, original), *noises), original)
        np.copyto(memory.push(), noise)
        np.copyto(memory.push(), sample)
        return StepResult(memory.sum((same, sample), (clean, original), (first, noise)), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        return original + float(self.sigmas[i]) * noise
