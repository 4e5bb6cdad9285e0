"""Formulas of samplers as linear combinations of a step's arrays.

A step of a one-step sampler is a weighted sum of at most four arrays. Its formula is written with
the names below, as in the paper, and evaluated to weights when the scheduler is built:

    >>> sigma, sigma_next = 2.0, 1.5
    >>> original = SAMPLE - sigma * NOISE_PRED
    >>> SAMPLE + (sigma_next - sigma) * (SAMPLE - original) / sigma
    Combination(original=0.0, sample=1.0, noise_pred=-0.5, noise=0.0)
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Combination:
    """original * x0 + sample * x + noise_pred * prediction + noise * z, as four weights."""

    original: float = 0.0
    sample: float = 0.0
    noise_pred: float = 0.0
    noise: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether all weights are finite."""
        return math.isfinite(self.original + self.sample + self.noise_pred + self.noise)

    def __add__(self, other: Combination) -> Combination:
        return Combination(
            self.original + other.original,
            self.sample + other.sample,
            self.noise_pred + other.noise_pred,
            self.noise + other.noise,
        )

    def __sub__(self, other: Combination) -> Combination:
        return Combination(
            self.original - other.original,
            self.sample - other.sample,
            self.noise_pred - other.noise_pred,
            self.noise - other.noise,
        )

    def __rmul__(self, factor: float) -> Combination:
        return Combination(
            factor * self.original,
            factor * self.sample,
            factor * self.noise_pred,
            factor * self.noise,
        )

    def __truediv__(self, divisor: float) -> Combination:
        return Combination(
            self.original / divisor,
            self.sample / divisor,
            self.noise_pred / divisor,
            self.noise / divisor,
        )


ORIGINAL = Combination(original=1.0)
"""The clean latents that the UNet predicts, clipped as the configuration says."""
SAMPLE = Combination(sample=1.0)
"""The latents before the step."""
NOISE_PRED = Combination(noise_pred=1.0)
"""The UNet's prediction."""
NOISE = Combination(noise=1.0)
"""Fresh noise."""
