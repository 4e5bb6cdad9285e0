"""Improved pseudo numerical methods, in continuous time. Source: Liu et al., arXiv 2202.09778."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.latent_scaling import (
    LatentScaling,
    predicted_noise,
    predicted_original,
)
from sdexport.runtime.schedulers.linear_combination import Combination
from sdexport.runtime.schedulers.pndm import ADAMS_BASHFORTH
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys, SchedulerConfig
from sdexport.runtime.schedulers.step_history import weighted_sum


@dataclass(frozen=True, kw_only=True)
class IPNDMConfig(SchedulerConfig):
    """Keys of diffusers' IPNDMScheduler: num_train_timesteps only; the others have no effect."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained_betas is not None:
            raise InvalidArgumentError("IPNDMScheduler: trained_betas are not supported")


class IPNDMScheduler(Scheduler):
    """Adams-Bashforth of order 4 over timesteps from 1 to 0, for models that predict v.

    It is for models of continuous time, such as Dance Diffusion.
    """

    config: IPNDMConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        self.config = IPNDMConfig.from_mapping(config)
        steps = self.config.check_steps(num_inference_steps)
        sigmas = np.sin(np.linspace(1, 0, steps + 1) * math.pi / 2) ** 2
        alphas = np.sqrt(1 - sigmas**2)
        self._sigmas: list[float] = sigmas.tolist()
        self._alphas: list[float] = alphas.tolist()
        originals = [
            predicted_original("v_prediction", alpha, sigma)
            for alpha, sigma in zip(self._alphas[:-1], self._sigmas[:-1], strict=True)
        ]
        scaling = LatentScaling(self._alphas, self._sigmas, originals)
        timesteps = np.arctan2(sigmas, alphas)[:-1] * 2 / math.pi
        super().__init__(timesteps, scaling, remembered=len(ADAMS_BASHFORTH))
        self._noises = self._table(self._predicted_noise)
        self._transfers = self._table(self._transfer)

    def _predicted_noise(self, i: int) -> Combination:
        return predicted_noise("v_prediction", self._alphas[i], self._sigmas[i])

    def _transfer(self, i: int) -> tuple[float, float]:
        """Weights of the latents and of the noise: eq. 11. At pure noise, the signal is zero."""
        alpha, sigma = self._alphas[i], self._sigmas[i]
        same = self._alphas[i + 1] / alpha if alpha else 0.0
        return same, self._sigmas[i + 1] - same * sigma

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """Eq. 12: the noise is a sum of the last four."""
        history, w = self._history, self._noises[i]
        newest = history.push()
        weighted_sum(newest, history.scratch, (w.sample, sample), (w.noise_pred, noise_pred))
        same, of_noise = self._transfers[i]
        weights = [of_noise * c for c in ADAMS_BASHFORTH[history.length - 1]]
        total = history.sum_newest(weights)
        prev = weighted_sum(total, history.scratch, (1.0, total), (same, sample))
        return StepResult(prev, self._original_later(noise_pred, i, sample))
