"""DPM-Solver and DPM-Solver++ as multistep solvers, deterministic or stochastic.

Source: Lu et al. 2022, DPM-Solver, arXiv 2206.00927; DPM-Solver++, arXiv 2211.01095, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sdexport.runtime.schedulers.common import Memory, StepResult, check_step, require_finite
from sdexport.runtime.schedulers.config import Bound
from sdexport.runtime.schedulers.logsnr import (
    Converter,
    Level,
    LogSNRConfig,
    decay,
    exponential_weights,
    logsnr_grid,
    phis,
)

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
_OTHER_SOLVERS = ("logrho", "bh1", "bh2")  # of DEIS and UniPC; diffusers takes them for midpoint


@dataclass(frozen=True, kw_only=True)
class DPMSolverConfig(LogSNRConfig):
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    euler_at_final: bool = False
    use_lu_lambdas: bool = False
    final_sigmas_type: str = "zero"
    lambda_min_clipped: Bound = -math.inf
    variance_type: str | None = None
    rescale_betas_zero_snr: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": (*ALGORITHMS, "deis"),
        "solver_type": ("midpoint", "heun", *_OTHER_SOLVERS),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance_type in ("learned", "learned_range"):
            raise ValueError(
                f"variance_type '{self.variance_type}' needs a UNet that predicts variances; "
                "Stable Diffusion's do not"
            )
        if self.final_sigmas_type == "zero" and self.algorithm in ("dpmsolver", "sde-dpmsolver"):
            raise ValueError(
                f"algorithm_type '{self.algorithm}' cannot end at final_sigmas_type 'zero'; "
                "set final_sigmas_type to 'sigma_min', or algorithm_type to 'dpmsolver++'"
            )
        if self.algorithm == "sde-dpmsolver" and self.solver_order == 3:
            raise ValueError(
                "algorithm_type 'sde-dpmsolver' has solver_order 1 or 2; for 3 take "
                "'sde-dpmsolver++'"
            )

    @property
    def algorithm(self) -> str:
        return "dpmsolver++" if self.algorithm_type == "deis" else self.algorithm_type

    @property
    def is_heun(self) -> bool:
        return self.solver_type == "heun"


class Weights(NamedTuple):
    """Of one step: the latents, the remembered predictions from the newest on, the noise."""

    sample: float
    past: tuple[float, ...]
    noise: float


def solver_weights(
    config: DPMSolverConfig, start: Level, goal: Level
) -> tuple[float, tuple[float, float, float], float]:
    """Weights of the latents, of a prediction and its differences, and of noise.

    Source: 2211.01095, eq. 8 and 18; 2206.00927, eq. 3.3.
    """
    width = goal.log_snr - start.log_snr
    predicts_noise = not config.algorithm.endswith("++")
    same = decay(predicts_noise, start, goal)
    if config.algorithm == "sde-dpmsolver++":
        first, second, third = exponential_weights(-2 * width, -goal.alpha)
        third -= goal.alpha  # diffusers adds the half that the series of third order subtracts
        noise = goal.sigma * math.sqrt(-math.expm1(-2 * width))
        return same * math.exp(-width), (first, second, third), noise
    weights = phis(predicts_noise, start, goal)
    if config.algorithm == "sde-dpmsolver":
        first, second, third = (2 * weight for weight in weights)
        return same, (first, second, third), goal.sigma * math.sqrt(math.expm1(2 * width))
    return same, weights, 0.0


class DPMSolverMultistepScheduler:
    """DPM-Solver(++) with the predictions of up to three steps.

    Args:
      config: keys of diffusers' DPMSolverMultistepScheduler; missing ones take its defaults.
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
        self.config = DPMSolverConfig.from_mapping(config)
        last = "zero" if self.config.final_sigmas_type == "zero" else "first"
        self.timesteps, self._levels = logsnr_grid(
            self.config,
            num_inference_steps,
            timesteps,
            last=last,
            rounds=self.config.beta_schedule != "squaredcos_cap_v2",
        )
        self._plan = [
            self._step_weights(i, min(i + 1, self._highest_order(i)))
            for i in range(len(self.timesteps))
        ]
        for weights in self._plan:
            require_finite("DPMSolverMultistepScheduler", weights.sample, weights.past)
        self._converter = Converter(
            "DPMSolverMultistepScheduler",
            self.config,
            self._levels,
            predicts_noise=not self.config.algorithm.endswith("++"),
        )
        self._memory = Memory(self.config.solver_order)

    def _highest_order(self, i: int) -> int:
        """Order of step i, once enough predictions are remembered."""
        config, left = self.config, len(self.timesteps) - i
        few = config.lower_order_final and len(self.timesteps) < 15
        if left == 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
            return 1
        return min(config.solver_order, 2) if left == 2 and few else config.solver_order

    def _step_weights(self, i: int, order: int) -> Weights:
        """Source: 2211.01095, algorithm 2 and appendix; 2206.00927, appendix."""
        levels = self._levels
        start, goal = levels[i], levels[i + 1]
        same, (first, second, third), noise = solver_weights(self.config, start, goal)
        width = goal.log_snr - start.log_snr
        if order == 1 or not width:
            return Weights(same, (first,), noise)
        back = [levels[i - k].log_snr - levels[i - k - 1].log_snr for k in range(order - 1)]
        if not all(back):
            return Weights(same, (math.nan,), noise)
        ratio = width / back[0]
        if order == 2:
            of_slope = ratio * (second if self.config.is_heun else first / 2)
            return Weights(same, (first + of_slope, -of_slope), noise)
        earlier = width / back[1]
        share = back[0] / (back[0] + back[1])
        curve = second * share + third * width / (back[0] + back[1])
        newest, before = (second + curve) * ratio, -curve * earlier
        return Weights(same, (first + newest, before - newest, -before), noise)

    def takes_noise(self, i: int) -> bool:
        return self.config.algorithm.startswith("sde")

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one multistep; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, converter = self._memory, self._converter
        memory.start(i, sample)
        original = converter.original(memory, i, noise_pred, sample)
        converter.remember(memory, i, noise_pred, sample, original)
        weights = self._plan[i]
        order = min(memory.held, self._highest_order(i))
        if len(weights.past) > order:
            weights = self._step_weights(i, order)
        terms = [(weight, memory[k]) for k, weight in enumerate(weights.past)]
        if noise is not None and weights.noise:
            terms.append((weights.noise, noise))
        return StepResult(memory.sum((weights.sample, sample), *terms), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        one = self._levels[i]
        return one.alpha * original + one.sigma * noise
