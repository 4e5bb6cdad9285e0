"""DPM-Solver and DPM-Solver++ as singlestep solvers.

Source: Lu et al. 2022, DPM-Solver, arXiv 2206.00927, algorithms 1 and 2; DPM-Solver++, arXiv
2211.01095, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sdexport.runtime.schedulers.common import Memory, StepResult, check_step, require_finite
from sdexport.runtime.schedulers.dpmsolver import DPMSolverConfig, Weights, solver_weights
from sdexport.runtime.schedulers.logsnr import Converter, logsnr_grid


@dataclass(frozen=True, kw_only=True)
class DPMSolverSinglestepConfig(DPMSolverConfig):
    lower_order_final: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **DPMSolverConfig.choices,
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++", "deis"),
    }


# Keys of the multistep solver that its singlestep twin does not know.
_IGNORED = (
    "euler_at_final",
    "rescale_betas_zero_snr",
    "steps_offset",
    "timestep_spacing",
    "use_lu_lambdas",
)


class DPMSolverSinglestepScheduler:
    """DPM-Solver(++) in groups of up to three steps that start from the group's first latents.

    Args:
      config: keys of diffusers' DPMSolverSinglestepScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
      timesteps: own whole timesteps, falling, instead of spaced ones.
    Raises: ValueError: a value out of range.
    """

    init_noise_sigma = 1.0
    order = 1

    def __init__(
        self,
        config: Mapping[str, Any],
        num_inference_steps: int,
        *,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        known = {key: value for key, value in config.items() if key not in _IGNORED}
        self.config = DPMSolverSinglestepConfig.from_mapping(known)
        last = "zero" if self.config.final_sigmas_type == "zero" else "first"
        self.timesteps, self._levels = logsnr_grid(
            self.config, num_inference_steps, timesteps, last=last
        )
        self._orders = _order_list(self.config, len(self.timesteps))
        self._plan = [self._step_weights(i, order) for i, order in enumerate(self._orders)]
        for weights in self._plan:
            require_finite("DPMSolverSinglestepScheduler", weights.sample, weights.past)
        self._converter = Converter(
            "DPMSolverSinglestepScheduler",
            self.config,
            self._levels,
            predicts_noise=not self.config.algorithm.endswith("++"),
        )
        self._memory = Memory(self.config.solver_order)
        self._base = Memory(1)

    def _step_weights(self, i: int, order: int) -> Weights:
        """Weights of the group's first latents and of the newest predictions."""
        levels = self._levels
        start, goal = levels[i - order + 1], levels[i + 1]
        same, (first, second, third), noise = solver_weights(self.config, start, goal)
        if order == 1:
            return Weights(same, (first,), noise)
        width = goal.log_snr - start.log_snr
        newest = (levels[i].log_snr - start.log_snr) / width
        is_heun = self.config.is_heun
        if order == 2:
            slope = (second if is_heun else first / 2) / newest
            return Weights(same, (slope, first - slope), noise)
        middle = (levels[i - 1].log_snr - start.log_snr) / width
        if not is_heun:
            slope = second / newest
            return Weights(same, (slope, 0.0, first - slope), noise)
        apart = newest - middle
        of_newest = (2 * third - middle * second) / apart / newest
        of_middle = (newest * second - 2 * third) / apart / middle
        return Weights(same, (of_newest, of_middle, first - of_newest - of_middle), noise)

    def takes_noise(self, i: int) -> bool:
        return self.config.algorithm.startswith("sde")

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one step of a group; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, base = self._memory, self._base
        memory.start(i, sample)
        base.start(i, sample)
        original = self._converter.original(memory, i, noise_pred, sample)
        self._converter.remember(memory, i, noise_pred, sample, original)
        weights, order = self._plan[i], self._orders[i]
        if order > memory.held:
            order = memory.held
            weights = self._step_weights(i, order)
        if order == 1:
            np.copyto(base.push(), sample)
        terms = [(weight, memory[k]) for k, weight in enumerate(weights.past)]
        if noise is not None and weights.noise:
            terms.append((weights.noise, noise))
        return StepResult(memory.sum((weights.sample, base[0]), *terms), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        one = self._levels[i]
        return one.alpha * original + one.sigma * noise


def _order_list(config: DPMSolverSinglestepConfig, steps: int) -> list[int]:
    """Order of every step: groups of 1..solver_order, shortened at the end where needed."""
    order, ends_at_zero = config.solver_order, config.final_sigmas_type == "zero"
    group = list(range(1, order + 1))
    orders = group * (steps // order)
    if config.lower_order_final or ends_at_zero or steps % order:
        tails = {3: ([1, 2, 1], [1], [1, 2]), 2: ([1, 1], [1]), 1: ([1],)}
        tail = tails[order][steps % order]
        orders = group * ((steps - len(tail)) // order) + tail
    if ends_at_zero:
        orders[-1] = 1
    return orders
