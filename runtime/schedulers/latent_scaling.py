"""How latents hold signal and noise at each step, and what the UNet's prediction says of them.

sample = alpha * original + sigma * noise. Variance-preserving latents have alpha**2 + sigma**2 = 1
and go to the UNet as they are; variance-exploding ones have alpha = 1 and are scaled before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdexport.runtime.schedulers.linear_combination import NOISE_PRED, SAMPLE, Combination
from sdexport.runtime.schedulers.scheduler_config import SchedulerConfig


@dataclass(frozen=True)
class LatentScaling:
    """The scales of every step.

    alphas, sigmas: of signal and noise in the latents before the step. originals: the clean latents
    in terms of SAMPLE and NOISE_PRED. input_scales: factors on the UNet's input; None for none.
    init_noise_sigma: standard deviation of latents that are pure noise, before the first step.
    """

    alphas: Sequence[float]
    sigmas: Sequence[float]
    originals: Sequence[Combination]
    input_scales: Sequence[float] | None = None
    init_noise_sigma: float = 1.0


def variance_preserving(
    alphas: Sequence[float], sigmas: Sequence[float], config: SchedulerConfig
) -> LatentScaling:
    """Latents as the UNet was trained on them, alpha**2 + sigma**2 = 1."""
    originals = [
        predicted_original(config.prediction_type, alpha, sigma)
        for alpha, sigma in zip(alphas, sigmas, strict=True)
    ]
    return LatentScaling(alphas, sigmas, originals)


def of_alphas_cumprod(alphas_cumprod: np.ndarray, config: SchedulerConfig) -> LatentScaling:
    """As variance_preserving, with alpha = sqrt(alphas_cumprod), (steps,) float64."""
    alphas, sigmas = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    return variance_preserving(alphas.tolist(), sigmas.tolist(), config)


def variance_exploding(sigmas: np.ndarray, config: SchedulerConfig) -> LatentScaling:
    """Latents original + sigma * noise, scaled to unit variance for the UNet.

    Args:
      sigmas: (steps or more,) float64; the noise level before each step.
    Source: Karras et al. 2022, arXiv 2206.00364, table 1, c_in for VE models.
    """
    levels: list[float] = sigmas.tolist()
    highest = float(np.max(sigmas))
    # these timesteps begin below pure noise, so that the latents hold a signal of unit variance too
    is_leading = config.timestep_spacing == "leading"
    return LatentScaling(
        alphas=[1.0] * len(levels),
        sigmas=levels,
        originals=[predicted_original_ve(config.prediction_type, sigma) for sigma in levels],
        input_scales=[1 / math.hypot(sigma, 1.0) for sigma in levels],
        init_noise_sigma=math.hypot(highest, 1.0) if is_leading else highest,
    )


def predicted_original(prediction_type: str, alpha: float, sigma: float) -> Combination:
    """The clean latents x0 in terms of the sample x and the prediction.

    epsilon: x0 = (x - sigma * prediction) / alpha; v_prediction: x0 = alpha * x - sigma *
    prediction; sample: the prediction itself.

    Source: DDPM, arXiv 2006.11239, eq. 15; v: arXiv 2202.00512, appendix D.
    """
    if prediction_type == "epsilon":
        if not alpha:
            return Combination(sample=math.inf, noise_pred=-math.inf)
        return Combination(sample=1 / alpha, noise_pred=-sigma / alpha)
    if prediction_type == "v_prediction":
        return Combination(sample=alpha, noise_pred=-sigma)
    return NOISE_PRED


def predicted_original_ve(prediction_type: str, sigma: float) -> Combination:
    """As predicted_original for variance-exploding latents, x = x0 + sigma * noise."""
    if prediction_type == "epsilon":
        return Combination(sample=1.0, noise_pred=-sigma)
    alpha = 1 / math.hypot(sigma, 1)  # the UNet's input is alpha * x
    original = predicted_original(prediction_type, alpha, sigma * alpha)
    return Combination(sample=original.sample * alpha, noise_pred=original.noise_pred)


def predicted_noise(prediction_type: str, alpha: float, sigma: float) -> Combination:
    """The noise in the sample, in terms of the sample x and the prediction.

    epsilon: the prediction itself; v_prediction: sigma * x + alpha * prediction; sample:
    (x - alpha * prediction) / sigma.
    """
    if prediction_type == "epsilon":
        return NOISE_PRED
    if prediction_type == "v_prediction":
        return Combination(sample=sigma, noise_pred=alpha)
    return Combination(sample=1 / sigma, noise_pred=-alpha / sigma)


def derivative(original: Combination, sigma: float) -> Combination:
    """dx / dsigma = (x - x0) / sigma of variance-exploding latents.

    Source: Karras et al. 2022, arXiv 2206.00364, eq. 1 and 3.
    """
    return (SAMPLE - original) / sigma
