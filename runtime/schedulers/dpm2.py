"""DPM-Solver-2 as in k-diffusion, and its ancestral form.

Source: Lu et al. 2022, arXiv 2206.00927, algorithm 1; Karras et al. 2022, arXiv 2206.00364,
appendix; k-diffusion's DPM2 samplers: the midpoint of a step lies halfway in log(sigma).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.latent_scaling import derivative, variance_exploding
from sdexport.runtime.schedulers.linear_combination import NOISE, SAMPLE, Combination
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.sigma_schedules import (
    SigmaConfig,
    ancestral_split,
    interleave,
    sigma_grid,
    training_sigmas,
)


@dataclass(frozen=True, kw_only=True)
class DPM2Config(SigmaConfig):
    """Keys of diffusers' KDPM2DiscreteScheduler and KDPM2AncestralDiscreteScheduler."""

    beta_start: float = 0.00085
    beta_end: float = 0.012

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": ("epsilon", "v_prediction")
    }


class KDPM2DiscreteScheduler(Scheduler):
    """Half a step to the midpoint, then the whole step with the slope at the midpoint.

    There are 2 * num_inference_steps - 1 calls of the UNet: the last step has no second half.
    """

    order = 2
    has_midpoint = True
    config: DPM2Config
    _ancestral = False

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        self.config = DPM2Config.from_mapping(config)
        every = training_sigmas(self.config)
        spaced, sigmas = sigma_grid(self.config, every, num_inference_steps)
        if self.config.spaced_by == "karras":
            spaced = np.round(spaced)
        sigmas_next = np.append(sigmas[1:], 0.0)
        split = [ancestral_split(*pair) for pair in zip(sigmas, sigmas_next, strict=True)]
        down = np.array([low for low, _ in split]) if self._ancestral else sigmas_next
        middle = np.sqrt(sigmas * down)
        self.sigmas = interleave(sigmas, middle)
        # how far the half step and the whole step go, and the noise after the whole step
        self._widths = [middle - sigmas, down - sigmas]
        self._sigmas_up = [up if self._ancestral else 0.0 for _, up in split]
        super().__init__(
            interleave(spaced, noise_schedules.sigma_to_timestep(middle, every)),
            variance_exploding(self.sigmas, self.config),
            kept=1,
        )
        self._weights = self._table(self._formula)

    def _formula(self, i: int) -> Combination:
        """Algorithm 1: to the midpoint (i even), or what is added to the start of the step."""
        step, is_second_half = divmod(i, 2)
        slope = derivative(self._scaling.originals[i], float(self.sigmas[i]))
        change = float(self._widths[is_second_half][step]) * slope
        return change + self._sigmas_up[step] * NOISE if is_second_half else SAMPLE + change

    def takes_noise(self, i: int) -> bool:
        """The ancestral form, at the end of every step but the last, which has one half only."""
        return self._ancestral and i % 2 == 1

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """The half step from the sample, or the whole step from the sample before the half step."""
        start = self._history.kept[0]
        if i % 2 == 0:
            np.copyto(start, sample)
            return super()._step(noise_pred, i, sample, noise)
        w = self._weights[i]
        terms = (w.sample, sample), (w.noise_pred, noise_pred), (w.noise, noise)
        original = self._original_later(noise_pred, i, sample)
        return StepResult(self._history.sum((1.0, start), *terms), original)


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """DPM2 to a lower level, and fresh noise back up at the end of every step but the last."""

    _ancestral = True
