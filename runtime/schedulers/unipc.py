"""UniPC, a predictor and a corrector of any order. Source: Zhao et al. 2023, arXiv 2302.04867."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sdexport.runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    combine,
    require_finite,
)
from sdexport.runtime.schedulers.logsnr import Converter, LogSNRConfig, decay, logsnr_grid, phis


@dataclass(frozen=True, kw_only=True)
class UniPCConfig(LogSNRConfig):
    predict_x0: bool = True
    solver_type: str = "bh2"
    disable_corrector: tuple[int, ...] = ()
    final_sigmas_type: str = "zero"
    rescale_betas_zero_snr: bool = False

    # those of the other solvers mean bh2, as in diffusers
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        ends_high = not self.lower_order_final and self.solver_order > 1
        if ends_high and self.final_sigmas_type == "zero":
            raise ValueError(
                "lower_order_final false needs final_sigmas_type 'sigma_min' or solver_order 1"
            )


class UniPCMultistepScheduler:
    """Each step first corrects the latents that it gets with the new prediction.

    Args:
      config: keys of diffusers' UniPCMultistepScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps.
    Raises: ValueError: a value out of range.
    """

    init_noise_sigma = 1.0
    order = 1

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        if config.get("solver_p") is not None:
            raise ValueError("solver_p: another predictor inside UniPC is not supported")
        self.config = UniPCConfig.from_mapping(config)
        last = "zero" if self.config.final_sigmas_type == "zero" else "same"
        self.timesteps, self._levels = logsnr_grid(self.config, num_inference_steps, last=last)
        steps = range(len(self.timesteps))
        orders = [self._order(i, i) for i in steps]
        self._predictors = [self._weights(i, orders[i], corrects=False) for i in steps]
        self._correctors = [self._weights(i, orders[i], corrects=True) for i in steps[:-1]]
        require_finite("UniPCMultistepScheduler", *self._predictors, *self._correctors)
        self._converter = Converter(
            "UniPCMultistepScheduler",
            self.config,
            self._levels,
            predicts_noise=not self.config.predict_x0,
        )
        self._memory = Memory(self.config.solver_order + 1)
        self._base = Memory(1)  # the corrected latents before the last step

    def _order(self, i: int, before: int) -> int:
        """Order of step i when `before` others went before it."""
        highest = self.config.solver_order
        if self.config.lower_order_final:
            highest = min(highest, len(self.timesteps) - i)
        return min(highest, before + 1)

    def _weights(self, i: int, order: int, *, corrects: bool) -> list[float]:
        """Of the latents before step i, then of the predictions from the newest on.

        The newest is the one at the start of the step or, for the corrector, at its end.
        Source: theorem 3.1 and eq. 3, 6 and 7.
        """
        levels, noise = self._levels, not self.config.predict_x0
        start, goal = levels[i], levels[i + 1]
        same, (first, _, _) = decay(noise, start, goal), phis(noise, start, goal)
        width = goal.log_snr - start.log_snr
        if (order == 1 and not corrects) or not width:
            return [same, *([0.0] if corrects else []), first]
        exponent = width if noise else -width
        scale = -goal.sigma if noise else -goal.alpha
        of_bh1 = self.config.solver_type == "bh1"
        size = exponent if of_bh1 else math.expm1(exponent)
        ratios = [(levels[i - k].log_snr - start.log_snr) / width for k in range(1, order)]
        if math.isinf(width) or len({0.0, 1.0, *ratios}) <= order:
            return [math.nan]
        shares = _shares([*ratios, 1.0] if corrects else ratios, exponent, size)
        slopes = [scale * size * s / r for s, r in zip(shares, [*ratios, 1.0], strict=False)]
        at_start = first - sum(slopes)
        if corrects:
            return [same, slopes[-1], at_start, *slopes[:-1]]
        return [same, at_start, *slopes]

    def takes_noise(self, i: int) -> bool:
        return False

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Correct the latents, then advance them; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory, base = self._memory, self._base
        follows = memory.start(i, sample) > 0
        base.start(i, sample)
        original = self._converter.original(memory, i, noise_pred, sample)
        self._converter.remember(memory, i, noise_pred, sample, original)
        if follows and i - 1 not in self.config.disable_corrector:
            order = self._order(i - 1, i - 1 - memory.begin)
            weights = self._correctors[i - 1]
            if order != self._order(i - 1, i - 1):
                weights = self._weights(i - 1, order, corrects=True)
            combine(base[0], memory.scratch, *self._terms(weights))
        else:
            np.copyto(base[0], sample)
        order = self._order(i, i - memory.begin)
        weights = self._predictors[i]
        if order != self._order(i, i):
            weights = self._weights(i, order, corrects=False)
        return StepResult(memory.sum(*self._terms(weights)), original)

    def _terms(self, weights: list[float]) -> list[tuple[float, np.ndarray]]:
        past = [(weight, self._memory[k]) for k, weight in enumerate(weights[1:])]
        return [(weights[0], self._base[0]), *past]

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        one = self._levels[i]
        return one.alpha * original + one.sigma * noise


def _shares(ratios: list[float], exponent: float, size: float) -> list[float]:
    """Weights of the scaled differences: the system of theorem 3.1, one half if there is one."""
    if len(ratios) == 1:
        return [0.5]
    moment, factorial, moments = math.expm1(exponent) / exponent - 1, 1, []
    for k in range(1, len(ratios) + 1):
        moments.append(moment * factorial / size)
        factorial *= k + 1
        moment = moment / exponent - 1 / factorial
    system = np.vander(ratios, increasing=True).T
    return [float(share) for share in np.linalg.solve(system, moments)]
