"""Linear multistep sampling.

Source: k-diffusion's LMS sampler, after Karras et al. 2022, arXiv 2206.00364, eq. 1 (the ODE
dx/dsigma = (x - denoised) / sigma) solved by Adams-Bashforth on the uneven grid of sigmas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime import schedules
from runtime.schedulers.common import ScheduleConfig, StepResult, check_step

ORDER = 4


@dataclass(frozen=True, kw_only=True)
class LMSConfig(ScheduleConfig):
    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_beta_sigmas:
            raise ValueError(
                "LMS: use_beta_sigmas needs SciPy and is left out; "
                "use_karras_sigmas and use_exponential_sigmas are there"
            )
        if self.use_karras_sigmas and self.use_exponential_sigmas:
            raise ValueError("LMS: use_karras_sigmas and use_exponential_sigmas exclude each other")


class LMSDiscreteScheduler:
    """Adams-Bashforth of order 4 over the noise levels.

    Args:
      config: keys of diffusers' LMSDiscreteScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
    Raises: ValueError: a value out of range.
    """

    takes_noise = False

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        self.config = LMSConfig.from_mapping(config)
        kept = schedules.alphas_cumprod(self.config.betas())
        every = np.sqrt((1 - kept) / kept)
        self.timesteps = schedules.spaced_timesteps(
            self.config.timestep_spacing,
            num_inference_steps,
            self.config.num_train_timesteps,
            self.config.steps_offset,
        )
        if self.timesteps[0] >= len(every):
            raise ValueError(
                f"steps_offset {self.config.steps_offset} leads to timestep "
                f"{self.timesteps[0]:g}, beyond the {len(every)} training steps"
            )
        sigmas = np.interp(self.timesteps, np.arange(len(every)), every)
        if self.config.use_karras_sigmas or self.config.use_exponential_sigmas:
            spread = (
                schedules.karras_sigmas
                if self.config.use_karras_sigmas
                else schedules.exponential_sigmas
            )
            sigmas = spread(float(sigmas[-1]), float(sigmas[0]), len(sigmas))
            self.timesteps = schedules.sigma_to_timestep(sigmas, every)
        self.sigmas = np.append(sigmas, 0.0)
        self._coefficients = [_coefficients(self.sigmas, i) for i in range(len(self.timesteps))]
        self._slopes: list[np.ndarray] = []

    @property
    def init_noise_sigma(self) -> float:
        highest = float(self.sigmas.max())
        if self.config.timestep_spacing == "leading":
            return math.hypot(highest, 1.0)
        return highest

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample / math.hypot(float(self.sigmas[i]), 1.0)

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one multistep; the last four slopes are remembered.

        Args:
          noise_pred: (B, C, H/8, W/8), the guided prediction of the UNet.
          i: step index; the first call may start anywhere, the next ones follow by one.
          sample: (B, C, H/8, W/8) latents before the step, not scaled.
        Returns: StepResult, same shape and dtype as sample.
        Raises: ValueError: shapes differ or index out of range.
        """
        check_step("LMS", noise_pred, i, sample, len(self.timesteps))
        sigma = float(self.sigmas[i])
        if self.config.prediction_type == "epsilon":
            original = sample - sigma * noise_pred
        elif self.config.prediction_type == "v_prediction":
            scale = sigma**2 + 1
            original = noise_pred * (-sigma / math.sqrt(scale)) + sample / scale
        else:
            original = noise_pred
        if not i:
            self._slopes = []
        self._slopes = [(sample - original) / sigma, *self._slopes[: ORDER - 1]]
        # before the fourth step of a run there are fewer slopes than the full order asks for
        weights = self._coefficients[i]
        if len(self._slopes) < len(weights):
            weights = _coefficients(self.sigmas, i, order=len(self._slopes))
        prev = sample.copy()
        for weight, slope in zip(weights, self._slopes, strict=True):
            prev += weight * slope
        return StepResult(prev, original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        return original + float(self.sigmas[i]) * noise


def _coefficients(sigmas: np.ndarray, i: int, *, order: int = ORDER) -> list[float]:
    """Weights of the last slopes, newest first, for the step from sigmas[i] to sigmas[i + 1].

    Each is the integral of a Lagrange polynomial of degree below 4 over the step, for which
    Gauss-Legendre quadrature with two nodes is exact.
    """
    order = min(i + 1, order)
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
