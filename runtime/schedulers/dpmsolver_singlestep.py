"""DPM-Solver and DPM-Solver++ as singlestep solvers.

Source: Lu et al. 2022, DPM-Solver, arXiv 2206.00927, algorithms 1 and 2; DPM-Solver++, arXiv
2211.01095, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.runtime.schedulers.dpmsolver import DPMSolverConfig, solver_weights
from sdexport.runtime.schedulers.log_snr import LogSNRScheduler, SolverWeights, log_snr_grid
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule
from sdexport.runtime.schedulers.scheduler_base import StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys

# Keys of the multistep solver that diffusers' singlestep solver does not have.
IGNORED = (
    "euler_at_final",
    "rescale_betas_zero_snr",
    "steps_offset",
    "timestep_spacing",
    "use_lu_lambdas",
)


@dataclass(frozen=True, kw_only=True)
class DPMSolverSinglestepConfig(DPMSolverConfig):
    """Keys of diffusers' DPMSolverSinglestepScheduler."""

    lower_order_final: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++", "deis")
    }


class DPMSolverSinglestepScheduler(LogSNRScheduler):
    """DPM-Solver(++) in groups of up to three steps, each from the latents before its group.

    Args:
      timesteps: the caller's own whole timesteps, falling, in place of spaced ones.
    """

    config: DPMSolverSinglestepConfig

    def __init__(
        self, config: Keys, num_inference_steps: int, *, timesteps: CustomSchedule = None
    ) -> None:
        known = {key: value for key, value in config.items() if key not in IGNORED}
        self.config = DPMSolverSinglestepConfig.from_mapping(known)
        last, order = self.config.last, self.config.solver_order
        found, levels = log_snr_grid(self.config, num_inference_steps, timesteps, last=last)
        self._orders = _order_list(self.config, len(found))
        noise = self.config.predicts_noise
        super().__init__(found, levels, predicts_noise=noise, remembered=order)

    def _highest_order(self, i: int) -> int:
        return self._orders[i]

    def _solver_weights(self, i: int, order: int) -> SolverWeights:
        """Weights of the latents before the group and of the newest predictions.

        Source: 2211.01095, algorithm 1; 2206.00927, algorithms 1 and 2.
        """
        levels = self._levels
        start, end = levels[i - order + 1], levels[i + 1]
        same, (first, second, third), noise = solver_weights(self.config, start, end)
        if order == 1:
            return SolverWeights(same, (first,), noise)
        width = end.log_snr - start.log_snr
        newest = (levels[i].log_snr - start.log_snr) / width
        is_heun = self.config.is_heun
        if order == 2:
            slope = (second if is_heun else first / 2) / newest
            return SolverWeights(same, (slope, first - slope), noise)
        middle = (levels[i - 1].log_snr - start.log_snr) / width
        if not is_heun:
            slope = second / newest
            return SolverWeights(same, (slope, 0.0, first - slope), noise)
        apart = newest - middle
        of_newest = (2 * third - middle * second) / apart / newest
        of_middle = (newest * second - 2 * third) / apart / middle
        return SolverWeights(same, (of_newest, of_middle, first - of_newest - of_middle), noise)

    def takes_noise(self, i: int) -> bool:
        return self.config.algorithm.startswith("sde")

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """A step of a group, from the latents before the group's first step."""
        original = self._remember(noise_pred, i, sample)
        start = self._history.kept[0]
        if min(self._orders[i], self._history.length) == 1:
            np.copyto(start, sample)
        return StepResult(self._advance(i, start, noise), original)


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
