"""DPM-Solver-2 as k-diffusion writes it, and its ancestral form.

Source: Lu et al. 2022, arXiv 2206.00927, algorithm 1; Karras et al. 2022, arXiv 2206.00364,
appendix; k-diffusion's DPM2 samplers: the midpoint of a step lies halfway in log(sigma).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    later,
    require_finite,
    slope_weights,
    ve_original_weights,
)
from sdexport.runtime.schedulers.heun import check_pair
from sdexport.runtime.schedulers.sigmas import (
    SpreadConfig,
    ancestral_split,
    input_scales,
    interleave,
    sigma_grid,
    start_sigma,
    training_sigmas,
)


@dataclass(frozen=True, kw_only=True)
class DPM2Config(SpreadConfig):
    beta_start: float = 0.00085
    beta_end: float = 0.012

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": ("epsilon", "v_prediction")
    }


class KDPM2DiscreteScheduler:
    """Half a step to the midpoint, then the whole step with the slope found there.

    A run may begin at any even index.

    Args:
      config: keys of diffusers' KDPM2DiscreteScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps; 2 steps - 1 calls of the UNet.
    Raises: ValueError: a value out of range.
    """

    order = 2
    _ancestral = False

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        self.config = DPM2Config.from_mapping(config)
        every = training_sigmas(self.config)
        spaced, sigmas = sigma_grid(self.config, every, num_inference_steps)
        if self.config.use_karras_sigmas:
            spaced = np.round(spaced)
        goals = np.append(sigmas[1:], 0.0)
        split = [ancestral_split(*pair) for pair in zip(sigmas, goals, strict=True)]
        down = np.array([low for low, _ in split]) if self._ancestral else goals
        middle = np.sqrt(sigmas * down)
        self.sigmas = interleave(sigmas, middle)
        self.timesteps = interleave(spaced, noise_schedules.sigma_to_timestep(middle, every))
        kind = self.config.prediction_type
        self._weights = []
        for i, sigma in enumerate(self.sigmas.tolist()):
            step = i // 2
            width = float((down if i % 2 else middle)[step] - sigmas[step])
            added = split[step][1] if self._ancestral and i % 2 else 0.0
            seen = ve_original_weights(kind, sigma)
            same, predicted = slope_weights(seen, sigma)
            self._weights.append((*seen, width * same, width * predicted, added))
        require_finite(type(self).__name__, self._weights)
        self._scales = input_scales(self.sigmas)
        self._memory = Memory(1)

    @property
    def init_noise_sigma(self) -> float:
        return start_sigma(self.config, self.sigmas)

    def takes_noise(self, i: int) -> bool:
        """With the ancestral form, at the end of every step but the last, which has one half."""
        return self._ancestral and i % 2 == 1

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample * self._scales[i]

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Half a step of DPM2; see Scheduler.step.

        Raises: ValueError: also, an odd index that does not follow on.
        """
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b, same, predicted, added) = self._memory, self._weights[i]
        check_pair(memory, i, sample)
        original = later((a, sample), (b, noise_pred))
        if i % 2 == 0:
            np.copyto(memory.push(), sample)
            prev = memory.sum((1 + same, sample), (predicted, noise_pred))
            return StepResult(prev, original)
        terms = [(1.0, memory[0]), (same, sample), (predicted, noise_pred)]
        if noise is not None:
            terms.append((added, noise))
        return StepResult(memory.sum(*terms), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        return original + float(self.sigmas[i]) * noise


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """DPM2 to a lower level, and fresh noise back up at the end of every step but the last."""

    _ancestral = True
