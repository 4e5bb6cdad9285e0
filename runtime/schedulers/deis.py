"""Diffusion exponential integrator sampling, over log(rho). Source: arXiv 2204.13902, sec. 3."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.runtime.schedulers.log_snr import (
    LogSNRConfig,
    LogSNRScheduler,
    SolverWeights,
    log_snr_grid,
)
from sdexport.runtime.schedulers.scheduler_config import Keys


@dataclass(frozen=True, kw_only=True)
class DEISConfig(LogSNRConfig):
    """Keys of diffusers' DEISMultistepScheduler."""

    algorithm_type: str = "deis"
    solver_type: str = "logrho"

    # the names of other solvers mean these two, as in diffusers
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
        "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
    }


class DEISMultistepScheduler(LogSNRScheduler):
    """The noise is extrapolated as a polynomial in log(rho), rho = sigma / alpha."""

    config: DEISConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        self.config = DEISConfig.from_mapping(config)
        found, levels = log_snr_grid(self.config, num_inference_steps, last="same")
        order = self.config.solver_order
        super().__init__(found, levels, predicts_noise=True, remembered=order)

    def _highest_order(self, i: int) -> int:
        order, steps = self.config.solver_order, len(self.timesteps)
        return min(order, steps - i) if self.config.lower_order_final and steps < 15 else order

    def _solver_weights(self, i: int, order: int) -> SolverWeights:
        """alpha' (x / alpha + the integral over rho of the extrapolated noise)."""
        start, end = self._levels[i], self._levels[i + 1]
        nodes = [-self._levels[i - k].log_snr for k in range(order)]
        integrals = _integrals(nodes, -start.log_snr, -end.log_snr)
        return SolverWeights(
            end.alpha / start.alpha, tuple(end.alpha * integral for integral in integrals)
        )


def _integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Integral over rho of each Lagrange polynomial in log(rho) through the nodes.

    The integral of log(rho)**n is rho * log(rho)**n less n times that of log(rho)**(n - 1).
    """

    def antiderivatives(log: float) -> list[float]:
        found = [math.exp(log)]
        for n in range(1, len(nodes)):
            found.append(math.exp(log) * log**n - n * found[-1])
        return found

    powers = np.subtract(antiderivatives(end), antiderivatives(start))
    weights = []
    for k, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != k]
        scale = math.prod(node - other for other in others)
        basis = np.poly(others)[::-1] if others else np.ones(1)
        weights.append(float(basis @ powers) / scale if scale else math.nan)
    return weights
