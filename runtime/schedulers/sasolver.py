"""SA-Solver, a stochastic predictor and corrector. Source: Xue et al. 2023, arXiv 2309.05019."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.log_snr import (
    Level,
    LogSNRConfig,
    LogSNRScheduler,
    SolverWeights,
    log_snr_grid,
)
from sdexport.runtime.schedulers.scheduler_base import StepResult
from sdexport.runtime.schedulers.scheduler_config import Bound, Keys, check_variance_type
from sdexport.runtime.schedulers.step_history import weighted_sum

_STOCHASTIC_FROM, _STOCHASTIC_TO = 200, 800  # timesteps with noise: diffusers' default tau_func
# Keys of other solvers that diffusers' SASolverScheduler does not have.
IGNORED = ("rescale_betas_zero_snr", "sigma_max", "sigma_min", "solver_order")
_OTHER_ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis")
_NODES, _SHARES = np.polynomial.legendre.leggauss(48)


@dataclass(frozen=True, kw_only=True)
class SASolverConfig(LogSNRConfig):
    """Keys of diffusers' SASolverScheduler."""

    predictor_order: int = 2
    corrector_order: int = 2
    algorithm_type: str = "data_prediction"
    lambda_min_clipped: Bound = -math.inf
    variance_type: str | None = None

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "predictor_order": (1, 4),
        "corrector_order": (1, 4),
    }
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("data_prediction", "noise_prediction"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_variance_type(self.variance_type)
        if self.thresholding and self.predicts_noise:
            raise InvalidArgumentError(
                "algorithm_type 'noise_prediction' and thresholding exclude each other"
            )

    @property
    def predicts_noise(self) -> bool:
        """Whether the solver extrapolates noise rather than clean latents."""
        return self.algorithm_type == "noise_prediction"


class SASolverScheduler(LogSNRScheduler):
    """Every step first corrects its latents with the new prediction, then advances them.

    Noise is added in the middle of the schedule, at timesteps 200 to 800. The corrector uses the
    noise of the step that it corrects again.
    """

    config: SASolverConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        if config.get("tau_func") is not None:
            raise InvalidArgumentError("tau_func: another function than diffusers' default")
        known = {key: value for key, value in config.items() if key not in IGNORED}
        if known.get("algorithm_type") in _OTHER_ALGORITHMS:
            del known["algorithm_type"]
        self.config = SASolverConfig.from_mapping(known)
        found, levels = log_snr_grid(self.config, num_inference_steps, last="same")
        self._taus = [float(_STOCHASTIC_FROM <= t <= _STOCHASTIC_TO) for t in found.tolist()]
        predictor, corrector = self.config.predictor_order, self.config.corrector_order
        super().__init__(
            found,
            levels,
            predicts_noise=self.config.predicts_noise,
            remembered=max(predictor, corrector),
            kept=2,
        )
        self._kept_alphas = self.config.alphas_cumprod()
        self._correctors = self._table(self._planned_corrector)

    def _highest_order(self, i: int) -> int:
        left, order = len(self.timesteps) - i, self.config.predictor_order
        return min(order, left) if self.config.lower_order_final else order

    def _corrector_order(self, i: int) -> int:
        """Order of the corrector of step i, once enough predictions are remembered."""
        left, order = len(self.timesteps) - i, self.config.corrector_order
        return min(order, left + 1) if self.config.lower_order_final else order

    def _solver_weights(self, i: int, order: int) -> SolverWeights:
        """The predictor, a stochastic Adams-Bashforth step. Source: eq. 14 and 15."""
        return self._weights_through(i, [self._levels[i - k].log_snr for k in range(order)])

    def _corrector(self, i: int, order: int) -> SolverWeights:
        """The corrector, a stochastic Adams-Moulton step, for the latents after step i.

        Its newest prediction is the one at the end of the step. Source: eq. 17.
        """
        return self._weights_through(i, [self._levels[i + 1 - k].log_snr for k in range(order)])

    def _planned_corrector(self, i: int) -> SolverWeights:
        """The corrector of step i in a run from the first step; the last step has none."""
        if i == len(self.timesteps) - 1:
            return SolverWeights(1.0, ())
        return self._corrector(i, min(i + 2, self._corrector_order(i)))

    def _weights_through(self, i: int, nodes: Sequence[float]) -> SolverWeights:
        """Weights of step i with the predictions at the nodes, in log-SNR, newest first."""
        start, end, tau = self._levels[i], self._levels[i + 1], self._taus[i]
        width, rate = end.log_snr - start.log_snr, 1 + tau**2
        if self._predicts_noise:
            integrals = _integrals(nodes, start, end, -1.0)
            past = [-rate * end.sigma * integral for integral in integrals]
            noise = tau * end.sigma * math.sqrt(math.expm1(2 * width))
            return SolverWeights(end.alpha / start.alpha, tuple(past), noise)
        integrals = _integrals(nodes, start, end, rate)
        if len(nodes) == 2:  # a more precise difference of the two predictions
            more = width**2 / 2 - (width * rate + math.expm1(-rate * width)) / rate**2
            more = more / (nodes[0] - nodes[1]) if more else 0.0
            integrals = [integrals[0] + more, integrals[1] - more]
        past = [rate * end.alpha * integral for integral in integrals]
        noise = end.sigma * math.sqrt(-math.expm1(-2 * tau**2 * width))
        same = math.exp(-(tau**2) * width) * end.sigma / start.sigma
        return SolverWeights(same, tuple(past), noise)

    def takes_noise(self, i: int) -> bool:
        """Always: diffusers draws noise where its weight is 0 too."""
        return True

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """As in Scheduler, with the level of the whole timestep, as in diffusers."""
        kept = float(self._kept_alphas[int(self.timesteps[i])])
        return math.sqrt(kept) * original + math.sqrt(1 - kept) * noise

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """Correct the latents with the new prediction, then advance them."""
        history, original = self._history, self._remember(noise_pred, i, sample)
        corrected, last_noise = history.kept
        if history.continues:
            weights = self._correctors[i - 1]
            if len(weights.past) > history.length:
                weights = self._corrector(i - 1, history.length)
            terms = *self._terms(weights, corrected), (weights.noise, last_noise)
            weighted_sum(corrected, history.scratch, *terms)
        else:
            np.copyto(corrected, sample)
        if noise is not None:
            np.copyto(last_noise, noise)
        return StepResult(self._advance(i, corrected, noise), original)


def _integrals(nodes: Sequence[float], start: Level, end: Level, rate: float) -> list[float]:
    """Integrals over the step of exp(rate * (log-SNR - its end)) times each Lagrange polynomial.

    By Gauss-Legendre quadrature: the antiderivatives cancel in small steps.
    """
    half, middle = (end.log_snr - start.log_snr) / 2, (end.log_snr + start.log_snr) / 2
    at = middle + half * _NODES
    weights = half * _SHARES * np.exp(rate * (at - end.log_snr))
    found = []
    for k, own in enumerate(nodes):
        basis = np.ones_like(at)
        for other in (*nodes[:k], *nodes[k + 1 :]):
            if own == other:
                return [math.nan] * len(nodes)
            basis *= (at - other) / (own - other)
        found.append(float(weights @ basis))
    return found
