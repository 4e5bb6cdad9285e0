"""Linear multistep sampling.

Source: k-diffusion's LMS sampler, after Karras et al. 2022, arXiv 2206.00364, eq. 1 (the ODE
dx/dsigma = (x - denoised) / sigma) solved by Adams-Bashforth on the uneven grid of sigmas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdexport.runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    combine,
    later,
    require_finite,
    slope_weights,
    ve_original_weights,
)
from sdexport.runtime.schedulers.sigmas import (
    SpreadConfig,
    input_scales,
    sigma_grid,
    start_sigma,
    training_sigmas,
)

ORDER = 4


@dataclass(frozen=True, kw_only=True)
class LMSConfig(SpreadConfig):
    """sigma_min and sigma_max bound exponential levels only, as in diffusers."""


class LMSDiscreteScheduler:
    """Adams-Bashforth of order 4 over the noise levels.

    A run that begins later keeps the weights of its index while it has fewer slopes than they
    ask for; so does diffusers.

    Args:
      config: keys of diffusers' LMSDiscreteScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
    Raises: ValueError: a value out of range.
    """

    order = 1

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        self.config = LMSConfig.from_mapping(config)
        if self.config.use_karras_sigmas:
            self.config = replace(self.config, sigma_min=None, sigma_max=None)
        every = training_sigmas(self.config)
        self.timesteps, sigmas = sigma_grid(self.config, every, num_inference_steps)
        self.sigmas = np.append(sigmas, 0.0)
        require_finite("LMSDiscreteScheduler", 1 / np.diff(self.sigmas))
        self._coefficients = [_coefficients(self.sigmas, i) for i in range(len(self.timesteps))]
        kind, levels = self.config.prediction_type, sigmas.tolist()
        self._originals = [ve_original_weights(kind, sigma) for sigma in levels]
        self._slopes = [slope_weights(*pair) for pair in zip(self._originals, levels, strict=True)]
        self._scales = input_scales(self.sigmas)
        self._memory = Memory(ORDER)

    @property
    def init_noise_sigma(self) -> float:
        return start_sigma(self.config, self.sigmas)

    def takes_noise(self, i: int) -> bool:
        return False

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample * self._scales[i]

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one multistep; the last four slopes are remembered."""
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b), (same, predicted) = self._memory, self._originals[i], self._slopes[i]
        memory.start(i, sample)
        original = later((a, sample), (b, noise_pred))
        combine(memory.push(), memory.scratch, (same, sample), (predicted, noise_pred))
        weights = self._coefficients[i][: memory.held]
        slopes = [(weight, memory[k]) for k, weight in enumerate(weights)]
        return StepResult(memory.sum((1.0, sample), *slopes), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        return original + float(self.sigmas[i]) * noise


def _coefficients(sigmas: np.ndarray, i: int) -> list[float]:
    """Weights of the last slopes, newest first, for the step from sigmas[i] to sigmas[i + 1].

    Each is the integral of a Lagrange polynomial of degree below 4 over the step, for which
    Gauss-Legendre quadrature with two nodes is exact.
    """
    order = min(i + 1, ORDER)
    start, end = float(sigmas[i]), float(sigmas[i + 1])
    half, middle = (end - start) / 2, (end + start) / 2
    nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    past = [float(sigmas[i - k]) for k in range(order)]
    return [
        half
        * sum(
            math.prod(
                (tau - past[k]) / (past[current] - past[k]) for k in range(order) if k != current
            )
            for tau in nodes
        )
        for current in range(order)
    ]
