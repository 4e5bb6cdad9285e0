"""UniPC, a predictor and a corrector of any order. Source: Zhao et al. 2023, arXiv 2302.04867."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.log_snr import (
    LogSNRConfig,
    LogSNRScheduler,
    SolverWeights,
    decay,
    log_snr_grid,
    phis,
)
from sdexport.runtime.schedulers.scheduler_base import StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys
from sdexport.runtime.schedulers.step_history import weighted_sum


@dataclass(frozen=True, kw_only=True)
class UniPCConfig(LogSNRConfig):
    """Keys of diffusers' UniPCMultistepScheduler."""

    predict_x0: bool = True
    solver_type: str = "bh2"
    disable_corrector: tuple[int, ...] = ()
    final_sigmas_type: str = "zero"
    rescale_betas_zero_snr: bool = False

    # the names of other solvers mean bh2, as in diffusers
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        ends_high = not self.lower_order_final and self.solver_order > 1
        if ends_high and self.final_sigmas_type == "zero":
            raise InvalidArgumentError(
                "lower_order_final false needs final_sigmas_type 'sigma_min' or solver_order 1"
            )


class UniPCMultistepScheduler(LogSNRScheduler):
    """Every step first corrects its latents with the new prediction, then advances them."""

    config: UniPCConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        if config.get("solver_p") is not None:
            raise InvalidArgumentError("solver_p: another predictor in UniPC is not supported")
        self.config = UniPCConfig.from_mapping(config)
        last = "zero" if self.config.final_sigmas_type == "zero" else "same"
        found, levels = log_snr_grid(self.config, num_inference_steps, last=last)
        noise, order = not self.config.predict_x0, self.config.solver_order
        super().__init__(found, levels, predicts_noise=noise, remembered=order + 1)
        self._correctors = self._table(self._planned_corrector)

    def _highest_order(self, i: int) -> int:
        left = len(self.timesteps) - i
        order = self.config.solver_order
        return min(order, left) if self.config.lower_order_final else order

    def _solver_weights(self, i: int, order: int) -> SolverWeights:
        """The predictor, UniP."""
        same, first, slopes = self._integrals(i, order, corrects=False)
        return SolverWeights(same, (first - sum(slopes), *slopes))

    def _corrector(self, i: int, order: int) -> SolverWeights:
        """The corrector, UniC, for the latents after step i.

        Its newest prediction is the one at the end of the step.
        """
        same, first, slopes = self._integrals(i, order, corrects=True)
        *others, newest = slopes or [0.0]
        return SolverWeights(same, (newest, first - sum(slopes), *others))

    def _planned_corrector(self, i: int) -> SolverWeights:
        """The corrector of step i in a run from the first step; the last step has none."""
        if i == len(self.timesteps) - 1:
            return SolverWeights(1.0, ())
        return self._corrector(i, min(i + 1, self._highest_order(i)))

    def _integrals(self, i: int, order: int, *, corrects: bool) -> tuple[float, float, list[float]]:
        """Weights of the latents before step i, of the prediction there, and of differences to it.

        The differences are those of the `order - 1` earlier predictions, newest first, and, for the
        corrector, of the prediction at the end of the step.

        Source: theorem 3.1 and eq. 3, 6 and 7.
        """
        levels, noise = self._levels, self._predicts_noise
        start, end = levels[i], levels[i + 1]
        same = decay(start, end, predicts_noise=noise)
        first, _, _ = phis(start, end, predicts_noise=noise)
        width = end.log_snr - start.log_snr
        if (order == 1 and not corrects) or not width:
            return same, first, []
        exponent, scale = (width, -end.sigma) if noise else (-width, -end.alpha)
        size = exponent if self.config.solver_type == "bh1" else math.expm1(exponent)
        ratios = [(levels[i - k].log_snr - start.log_snr) / width for k in range(1, order)]
        if math.isinf(width) or len({0.0, 1.0, *ratios}) <= order:
            return math.nan, first, []
        if corrects:
            ratios.append(1.0)
        shares = _shares(ratios, exponent, size)
        slopes = [scale * size * s / ratio for s, ratio in zip(shares, ratios, strict=True)]
        return same, first, slopes

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """Correct the latents with the new prediction, then advance them."""
        history, original = self._history, self._remember(noise_pred, i, sample)
        corrected = history.kept[0]
        if history.continues and i - 1 not in self.config.disable_corrector:
            weights = self._correctors[i - 1]
            if len(weights.past) > history.length:
                weights = self._corrector(i - 1, history.length - 1)
            weighted_sum(corrected, history.scratch, *self._terms(weights, corrected))
        else:
            np.copyto(corrected, sample)
        return StepResult(self._advance(i, corrected, noise), original)


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
