"""Quantiles of the beta distribution, without SciPy."""

from __future__ import annotations

import math

import numpy as np

_TERMS = 64  # of a series in powers of at most 1/2: the rest is below rounding
_ITERATIONS = 100


def beta_quantiles(probabilities: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The inverse of the regularised incomplete beta function, as scipy.stats.beta.ppf.

    Args:
      probabilities: (n,) float64, 0 to 1.
      alpha, beta: 0.1 to 10, the shape of the distribution.
    Returns: (n,) float64, 0 to 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    below = p <= _cumulative(np.array([0.5]), alpha, beta)[0]
    # each half from its own end, where the series converges: x, or 1 - x
    lower = _lower_quantiles(np.where(below, p, 0.0), alpha, beta)
    upper = _lower_quantiles(np.where(below, 0.0, 1 - p), beta, alpha)
    return np.where(below, lower, 1 - upper)


def _lower_quantiles(p: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Quantiles up to 1/2: Newton's method on x**alpha, kept in a bracket that it halves."""
    low, high = np.zeros_like(p), np.full_like(p, 0.5**alpha)
    scale = alpha * _beta_function(alpha, beta)
    power = np.minimum(p * scale, high)  # the first term of the series
    for _ in range(_ITERATIONS):
        x = power ** (1 / alpha)
        excess = _cumulative(x, alpha, beta) - p
        low, high = np.where(excess < 0, power, low), np.where(excess > 0, power, high)
        # d I / d x**alpha = (1 - x)**(beta - 1) / (alpha B)
        proposed = power - excess * scale / (1 - x) ** (beta - 1)
        inside = (proposed >= low) & (proposed <= high)
        following = np.where(excess == 0, power, np.where(inside, proposed, (low + high) / 2))
        if np.all(np.abs(following - power) <= 4e-16 * power):
            break
        power = following
    return np.asarray(power ** (1 / alpha))


def _cumulative(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The regularised incomplete beta function for x up to 1/2.

    Source: Abramowitz and Stegun, 26.5.4: x**alpha / B times a power series of x.
    """
    total, term = np.full_like(x, 1 / alpha), np.ones_like(x)
    for n in range(1, _TERMS):
        term = term * x * ((n - beta) / n)
        total = total + term / (alpha + n)
    return np.asarray(x**alpha * total / _beta_function(alpha, beta))


def _beta_function(alpha: float, beta: float) -> float:
    return math.exp(math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta))
