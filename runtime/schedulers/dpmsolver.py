"""DPM-Solver and DPM-Solver++ as multistep solvers, deterministic or stochastic.

Source: Lu et al. 2022, DPM-Solver, arXiv 2206.00927; DPM-Solver++, arXiv 2211.01095, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.latent_scaling import LatentScaling
from sdexport.runtime.schedulers.log_snr import (
    Level,
    LogSNRConfig,
    LogSNRScheduler,
    SolverWeights,
    decay,
    differences_weights,
    exponential_weights,
    log_snr_grid,
    phis,
)
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule
from sdexport.runtime.schedulers.scheduler_config import Bound, Keys, check_variance_type

_ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
_OTHER_SOLVERS = ("logrho", "bh1", "bh2")  # of DEIS and UniPC; the same as midpoint in diffusers


@dataclass(frozen=True, kw_only=True)
class DPMSolverConfig(LogSNRConfig):
    """Keys of diffusers' DPMSolverMultistepScheduler."""

    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    euler_at_final: bool = False
    use_lu_lambdas: bool = False
    final_sigmas_type: str = "zero"
    lambda_min_clipped: Bound = -math.inf
    variance_type: str | None = None
    rescale_betas_zero_snr: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": (*_ALGORITHMS, "deis"),
        "solver_type": ("midpoint", "heun", *_OTHER_SOLVERS),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_variance_type(self.variance_type)
        if self.final_sigmas_type == "zero" and self.predicts_noise:
            raise InvalidArgumentError(
                f"algorithm_type '{self.algorithm}' cannot end at final_sigmas_type 'zero'; "
                "set final_sigmas_type to 'sigma_min', or algorithm_type to 'dpmsolver++'"
            )
        if self.algorithm == "sde-dpmsolver" and self.solver_order == 3:
            raise InvalidArgumentError(
                "algorithm_type 'sde-dpmsolver' has solver_order 1 or 2; use "
                "'sde-dpmsolver++' for 3"
            )

    @property
    def algorithm(self) -> str:
        """algorithm_type; "deis" is another name for "dpmsolver++", as in diffusers."""
        return "dpmsolver++" if self.algorithm_type == "deis" else self.algorithm_type

    @property
    def predicts_noise(self) -> bool:
        """Whether the solver extrapolates noise rather than clean latents."""
        return not self.algorithm.endswith("++")

    @property
    def last(self) -> str:
        """The level after the last step; see log_snr_grid."""
        return "zero" if self.final_sigmas_type == "zero" else "first"

    @property
    def is_heun(self) -> bool:
        """Whether the second-order form is Heun's, not the midpoint's."""
        return self.solver_type == "heun"


def solver_weights(
    config: DPMSolverConfig, start: Level, end: Level
) -> tuple[float, tuple[float, float, float], float]:
    """Weights of the latents, of a prediction and its first two differences, and of noise.

    Source: 2211.01095, eq. 8 and 18; 2206.00927, eq. 3.3.
    """
    width = end.log_snr - start.log_snr
    same = decay(start, end, predicts_noise=config.predicts_noise)
    if config.algorithm == "sde-dpmsolver++":
        first, second, third = exponential_weights(-2 * width, -end.alpha)
        third -= end.alpha  # diffusers adds the half that the series of third order subtracts
        noise = end.sigma * math.sqrt(-math.expm1(-2 * width))
        return same * math.exp(-width), (first, second, third), noise
    weights = phis(start, end, predicts_noise=config.predicts_noise)
    if config.algorithm == "sde-dpmsolver":
        first, second, third = (2 * weight for weight in weights)
        return same, (first, second, third), end.sigma * math.sqrt(math.expm1(2 * width))
    return same, weights, 0.0


class MultistepDPMSolver(LogSNRScheduler):
    """DPM-Solver(++) with the predictions of up to three steps, over given levels.

    Args:
      timesteps, levels: see LogSNRScheduler.
      scaling: as in LogSNRScheduler.
    """

    config: DPMSolverConfig

    def __init__(
        self,
        timesteps: np.ndarray,
        levels: Sequence[Level],
        scaling: LatentScaling | None = None,
    ) -> None:
        noise, order = self.config.predicts_noise, self.config.solver_order
        super().__init__(timesteps, levels, predicts_noise=noise, remembered=order, scaling=scaling)

    def _highest_order(self, i: int) -> int:
        config, left = self.config, len(self.timesteps) - i
        few = config.lower_order_final and len(self.timesteps) < 15
        if left == 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
            return 1
        return min(config.solver_order, 2) if left == 2 and few else config.solver_order

    def _solver_weights(self, i: int, order: int) -> SolverWeights:
        """Source: 2211.01095, algorithm 2 and appendix; 2206.00927, appendix."""
        levels = self._levels
        start, end = levels[i], levels[i + 1]
        same, (first, second, third), noise = solver_weights(self.config, start, end)
        width = end.log_snr - start.log_snr
        if not width:
            order = 1
        if order == 2 and not self.config.is_heun:
            second = first / 2
        weights, back = (first, second, third), self._widths_before(i, order)
        return SolverWeights(same, differences_weights(weights, width, back), noise)

    def takes_noise(self, i: int) -> bool:
        return self.config.algorithm.startswith("sde")


class DPMSolverMultistepScheduler(MultistepDPMSolver):
    """DPM-Solver(++) with the predictions of up to three steps.

    Args:
      timesteps: the caller's own whole timesteps, falling, in place of spaced ones.
    """

    def __init__(
        self, config: Keys, num_inference_steps: int, *, timesteps: CustomSchedule = None
    ) -> None:
        self.config = DPMSolverConfig.from_mapping(config)
        rounds = self.config.beta_schedule != "squaredcos_cap_v2"
        found, levels = log_snr_grid(
            self.config, num_inference_steps, timesteps, last=self.config.last, rounds=rounds
        )
        super().__init__(found, levels)
