"""Heun's second-order method. Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdexport.runtime.schedulers.latent_scaling import derivative, variance_exploding
from sdexport.runtime.schedulers.linear_combination import ORIGINAL, Combination
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule
from sdexport.runtime.schedulers.scheduler_base import Original, Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.sigma_schedules import SigmaConfig, sigma_grid, training_sigmas


@dataclass(frozen=True, kw_only=True)
class HeunConfig(SigmaConfig):
    """Keys of diffusers' HeunDiscreteScheduler."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    clip_sample: bool = False
    clip_sample_range: float = 1.0


class HeunDiscreteScheduler(Scheduler):
    """A step to the next noise level, repeated with the mean of the slopes at both its ends.

    There are 2 * num_inference_steps - 1 calls of the UNet: the last step has no second half.

    Args:
      timesteps: the caller's own falling timesteps, in place of spaced ones.
    """

    order = 2
    config: HeunConfig

    def __init__(
        self, config: Keys, num_inference_steps: int, *, timesteps: CustomSchedule = None
    ) -> None:
        self.config = HeunConfig.from_mapping(config)
        every = training_sigmas(self.config)
        spaced, sigmas = sigma_grid(self.config, every, num_inference_steps, timesteps)
        self.sigmas = np.append(sigmas[:1], [*np.repeat(sigmas[1:], 2), 0.0])
        super().__init__(
            np.append(spaced[:1], np.repeat(spaced[1:], 2)),
            variance_exploding(self.sigmas, self.config),
            kept=1,
        )
        self._half_slopes = self._table(self._half_slope)

    def _half_slope(self, i: int) -> Combination:
        """(sigma_next - sigma) / 2 * dx/dsigma, at the start (i even) or the end of the step."""
        start = i - i % 2
        width = float(self.sigmas[start + 1] - self.sigmas[start])
        original = ORIGINAL if self.config.clip_sample else self._scaling.originals[i]
        return width / 2 * derivative(original, float(self.sigmas[i]))

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """An Euler step (algorithm 1, line 5), or its correction (lines 7 and 8)."""
        history, w = self._history, self._half_slopes[i]
        original: Original = self._original_later(noise_pred, i, sample)
        half_slope = (w.sample, sample), (w.noise_pred, noise_pred)
        if self.config.clip_sample:
            original = clipped = self._original(noise_pred, i, sample)
            half_slope = (w.sample, sample), (w.original, clipped)
        halfway = history.kept[0]
        if i % 2:
            return StepResult(history.sum((1.0, halfway), *half_slope), original)
        prev = history.sum(*half_slope)
        np.add(sample, prev, halfway)
        return StepResult(np.add(halfway, prev, prev), original)
