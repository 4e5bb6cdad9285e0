"""Classifier-free guidance. Source: Ho and Salimans 2022, arXiv 2207.12598, eq. 6."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks

MAX_SCALE = 10_000.0


def within(interval: tuple[float, float], i: int, steps: int) -> bool:
    """Whether step i of `steps` is in an interval (start, end) of fractions of the steps."""
    start, end = interval
    return start <= i / steps < end


@dataclass(frozen=True)
class GuidanceState:
    """The argument of a guidance function, after the UNet's prediction and before the step.

    index, timestep: of the step. sigma: noise over signal in `latents`, the noise level of
    Karras et al.; infinite if there is no signal. latents, noise_pred, pred_original_sample:
    (B, C, H/8, W/8) float32, the scheduler's state, the guided prediction, and the clean latents
    that both imply; copies, which the function may change.
    """

    index: int
    timestep: float
    sigma: float
    latents: np.ndarray
    noise_pred: np.ndarray
    pred_original_sample: np.ndarray


GuidanceFunction = Callable[[GuidanceState], np.ndarray | None]
"""Returns the latents for the step, of the same shape, or None to leave them unchanged."""


@dataclass(frozen=True)
class Guidance:
    """Settings of classifier-free guidance, and the guidance function.

    Args:
      scale: 0 to 10000; up to 1 the unconditional pass is not run.
      rescale: 0 to 1, how far the standard deviation of the guided prediction is moved to that of
        the prediction for the prompt, against overexposure at high scales.
      interval: (start, end) as fractions of the steps, 0 <= start < end <= 1; outside of it the
        unconditional pass is not run.
      function: called in every step; see GuidanceState.
    Raises: InvalidArgumentError: a value out of range.
    Source: rescale: arXiv 2305.08891, section 3.4; interval: arXiv 2404.07724.
    """

    scale: float = 7.5
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    function: GuidanceFunction | None = None

    def __post_init__(self) -> None:
        checks.number("guidance_scale", self.scale, 0)
        if self.scale > MAX_SCALE:
            raise InvalidArgumentError(
                f"guidance_scale must be {MAX_SCALE:g} or less, got {self.scale}"
            )
        checks.number("guidance_rescale", self.rescale, 0, 1)
        checks.function("guidance_function", self.function)
        checks.interval("guidance_interval", self.interval)

    @property
    def is_guided(self) -> bool:
        """Whether the unconditional pass is needed.

        At scale 1 it would cancel out; below 1 it is not run either, as in diffusers.
        """
        return self.scale > 1

    def is_guided_at(self, i: int, steps: int) -> bool:
        """Whether step i of `steps` runs the unconditional pass."""
        return self.is_guided and within(self.interval, i, steps)

    def combine(self, noise_pred: np.ndarray) -> np.ndarray:
        """The guided prediction: unconditional + scale * (conditional - unconditional), eq. 6.

        Args:
          noise_pred: (2B, C, H, W) float32, the unconditional half first.
        Returns: (B, C, H, W), same dtype.
        """
        noise_pred_uncond, noise_pred_text = np.split(noise_pred, 2)
        guided: np.ndarray = noise_pred_text - noise_pred_uncond
        guided *= self.scale
        guided += noise_pred_uncond
        if self.rescale:
            axes = tuple(range(1, guided.ndim))
            wanted = noise_pred_text.std(axes, keepdims=True, ddof=1)
            spread = guided.std(axes, keepdims=True, ddof=1)
            ratio = np.divide(wanted, spread, out=np.ones_like(wanted), where=spread > 0)
            guided *= self.rescale * ratio + (1 - self.rescale)
        return guided
