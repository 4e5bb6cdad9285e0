"""Linear multistep sampling.

Source: k-diffusion's LMS sampler: the ODE of Karras et al. 2022, arXiv 2206.00364, eq. 1,
dx/dsigma = (x - x0) / sigma, solved by Adams-Bashforth on the uneven grid of sigmas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from sdexport.runtime.schedulers.latent_scaling import derivative, variance_exploding
from sdexport.runtime.schedulers.linear_combination import Combination
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.sigma_schedules import SigmaConfig, sigma_grid, training_sigmas
from sdexport.runtime.schedulers.step_history import weighted_sum

ORDER = 4


@dataclass(frozen=True, kw_only=True)
class LMSConfig(SigmaConfig):
    """Keys of diffusers' LMSDiscreteScheduler; sigma_min and sigma_max limit exponential levels.

    restart_history is ours: see LMSDiscreteScheduler.
    """

    restart_history: bool = False


class LMSDiscreteScheduler(Scheduler):
    """Adams-Bashforth of order 4 over the noise levels.

    A run that begins within the schedule uses the weights of its index from its first step on,
    with fewer slopes than they are made for; so does diffusers, and noise is left in the image.
    With the key restart_history its first steps have the weights of lower orders.
    """

    config: LMSConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        self.config = LMSConfig.from_mapping(config)
        if self.config.spaced_by == "karras":
            self.config = replace(self.config, sigma_min=None, sigma_max=None)
        every = training_sigmas(self.config)
        timesteps, sigmas = sigma_grid(self.config, every, num_inference_steps)
        self.sigmas = np.append(sigmas, 0.0)
        super().__init__(timesteps, variance_exploding(self.sigmas, self.config), remembered=ORDER)
        self.leaves_noise = not self.config.restart_history
        self._coefficients = self._table(lambda i: self._adams_bashforth(i, min(i + 1, ORDER)))
        self._slopes = self._table(self._slope)

    def _slope(self, i: int) -> Combination:
        return derivative(self._scaling.originals[i], float(self.sigmas[i]))

    def _adams_bashforth(self, i: int, order: int) -> list[float]:
        """Weights of the last slopes, newest first, for the step from sigmas[i] to sigmas[i + 1].

        Each is the integral of a Lagrange polynomial of degree below 4 over the step, for which
        Gauss-Legendre quadrature with two nodes is exact.
        """
        start, end = float(self.sigmas[i]), float(self.sigmas[i + 1])
        half, middle = (end - start) / 2, (end + start) / 2
        nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
        past = [float(self.sigmas[i - k]) for k in range(order)]
        weights = []
        for k, own in enumerate(past):
            others = [*past[:k], *past[k + 1 :]]
            values = [math.prod((tau - x) / (own - x) for x in others) for tau in nodes]
            weights.append(half * sum(values))
        return weights

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """x + the weighted sum of the last four slopes."""
        history, slope = self._history, self._slopes[i]
        newest = history.push()
        weighted_sum(
            newest, history.scratch, (slope.sample, sample), (slope.noise_pred, noise_pred)
        )
        weights = self._coefficients[i][: history.length]
        if self.config.restart_history and history.length < min(i + 1, ORDER):
            weights = self._adams_bashforth(i, history.length)
        slopes = [(weight, history[k]) for k, weight in enumerate(weights)]
        original = self._original_later(noise_pred, i, sample)
        return StepResult(history.sum((1.0, sample), *slopes), original)
