"""Diffusion exponential integrator sampling, over log(rho). Source: arXiv 2204.13902, sec. 3."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sdexport.runtime.schedulers.common import Memory, StepResult, check_step, require_finite
from sdexport.runtime.schedulers.dpmsolver import Weights
from sdexport.runtime.schedulers.logsnr import Converter, LogSNRConfig, logsnr_grid


@dataclass(frozen=True, kw_only=True)
class DEISConfig(LogSNRConfig):
    algorithm_type: str = "deis"
    solver_type: str = "logrho"

    # those of the other solvers mean these two, as in diffusers
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
        "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
    }


class DEISMultistepScheduler:
    """The noise is extrapolated as a polynomial in log(rho), rho = sigma / alpha.

    Args:
      config: keys of diffusers' DEISMultistepScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
    Raises: ValueError: a value out of range.
    """

    init_noise_sigma = 1.0
    order = 1

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        self.config = DEISConfig.from_mapping(config)
        self.timesteps, self._levels = logsnr_grid(self.config, num_inference_steps, last="same")
        steps = range(len(self.timesteps))
        self._plan = [self._step_weights(i, min(i + 1, self._highest_order(i))) for i in steps]
        for weights in self._plan:
            require_finite("DEISMultistepScheduler", weights.sample, weights.past)
        self._converter = Converter(
            "DEISMultistepScheduler", self.config, self._levels, predicts_noise=True
        )
        self._memory = Memory(self.config.solver_order)

    def _highest_order(self, i: int) -> int:
        """Order of step i, once enough predictions are remembered."""
        left = len(self.timesteps) - i
        if self.config.lower_order_final and len(self.timesteps) < 15:
            return min(self.config.solver_order, left)
        return self.config.solver_order

    def _step_weights(self, i: int, order: int) -> Weights:
        start, goal = self._levels[i], self._levels[i + 1]
        logs = [-self._levels[i - k].log_snr for k in range(order)]
        past = [goal.alpha * w for w in _integrals(logs, -start.log_snr, -goal.log_snr)]
        return Weights(goal.alpha / start.alpha, tuple(past), 0.0)

    def takes_noise(self, i: int) -> bool:
        return False

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one multistep; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory = self._memory
        memory.start(i, sample)
        original = self._converter.original(memory, i, noise_pred, sample)
        self._converter.remember(memory, i, noise_pred, sample, original)
        weights = self._plan[i]
        order = min(memory.held, self._highest_order(i))
        if len(weights.past) > order:
            weights = self._step_weights(i, order)
        terms = [(weight, memory[k]) for k, weight in enumerate(weights.past)]
        return StepResult(memory.sum((weights.sample, sample), *terms), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        one = self._levels[i]
        return one.alpha * original + one.sigma * noise


def _integrals(nodes: Sequence[float], start: float, goal: float) -> list[float]:
    """Integral over rho of each Lagrange polynomial in log(rho) through the nodes.

    The integral of log(rho)**n is rho * log(rho)**n less n times that of log(rho)**(n - 1).
    """

    def antiderivatives(log: float) -> list[float]:
        found = [math.exp(log)]
        for n in range(1, len(nodes)):
            found.append(math.exp(log) * log**n - n * found[-1])
        return found

    powers = np.subtract(antiderivatives(goal), antiderivatives(start))
    weights = []
    for k, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != k]
        scale = math.prod(node - other for other in others)
        basis = np.poly(others)[::-1] if others else np.ones(1)
        weights.append(float(basis @ powers) / scale if scale else math.nan)
    return weights
