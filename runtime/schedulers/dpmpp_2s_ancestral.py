"""DPM-Solver++ (2S) with ancestral noise, as k-diffusion's sample_dpmpp_2s_ancestral.

Source: Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, algorithm 1 with r = 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.latent_scaling import variance_exploding
from sdexport.runtime.schedulers.linear_combination import NOISE, ORIGINAL, SAMPLE, Combination
from sdexport.runtime.schedulers.schedule_arguments import number_option
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
class KDiffusionConfig(SigmaConfig):
    """Keys of the samplers that k-diffusion has and diffusers does not."""

    rescale_betas_zero_snr: bool = False


class DPMSolver2SAncestralScheduler(Scheduler):
    """A half step to the midpoint, then the whole step with the prediction there, and noise.

    There are 2 * num_inference_steps - 1 calls of the UNet: the last step has no second half.

    Args:
      noise_share: 0 (no noise) to 1 (ancestral); k-diffusion's eta.
      s_noise: factor on the noise, 0 or more.
    """

    order = 2
    config: KDiffusionConfig

    def __init__(
        self,
        config: Keys,
        num_inference_steps: int,
        *,
        noise_share: float = 1.0,
        s_noise: float = 1.0,
    ) -> None:
        self.config = KDiffusionConfig.from_mapping(config)
        eta = number_option("noise_share", noise_share, 0, 1)
        self._s_noise = number_option("s_noise", s_noise, 0, 1e9)
        every = training_sigmas(self.config)
        spaced, sigmas = sigma_grid(self.config, every, num_inference_steps)
        pairs = zip(sigmas.tolist(), [*sigmas[1:].tolist(), 0.0], strict=True)
        # of every step: its start, the level to step down to, and the noise to add
        self._split: list[tuple[float, float, float]] = [
            (start, *ancestral_split(start, end, eta)) for start, end in pairs
        ]
        middle = np.array([math.sqrt(start * down) for start, down, _ in self._split])
        self.sigmas = interleave(sigmas, middle)
        super().__init__(
            interleave(spaced, noise_schedules.sigma_to_timestep(middle, every)),
            variance_exploding(self.sigmas, self.config),
            kept=1,
        )
        self._weights = self._table(self._formula)

    def _formula(self, i: int) -> Combination:
        """x' = sigma' / sigma x + (1 - sigma' / sigma) x0 + sigma_up z, 2211.01095, eq. 8.

        SAMPLE is the one at the start of the step; sigma' is the midpoint (i even) or sigma_down.
        """
        start, down, up = self._split[i // 2]
        if i % 2:
            noise = self._s_noise * up * NOISE
        else:
            down, noise = math.sqrt(start * down), Combination()
        return down / start * SAMPLE + (1 - down / start) * ORIGINAL + noise

    def takes_noise(self, i: int) -> bool:
        """At the end of every step but the last, which has one half only."""
        return i % 2 == 1

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """The half step from the sample, or the whole step from the sample before the half step."""
        history, w = self._history, self._weights[i]
        start = history.kept[0]
        if i % 2 == 0:
            np.copyto(start, sample)
        original = self._original(noise_pred, i, sample)
        terms = (w.original, original), (w.sample, start), (w.noise, noise)
        return StepResult(history.sum(*terms), original)
