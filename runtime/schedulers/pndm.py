"""Pseudo numerical methods. Source: Liu et al. 2022, arXiv 2202.09778."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.latent_scaling import of_alphas_cumprod
from sdexport.runtime.schedulers.linear_combination import Combination
from sdexport.runtime.schedulers.scheduler_base import Scheduler, StepResult
from sdexport.runtime.schedulers.scheduler_config import Keys, SchedulerConfig
from sdexport.runtime.schedulers.step_history import weighted_sum

# Adams-Bashforth weights of the newest predictions, by how many there are. Source: eq. 12.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@dataclass(frozen=True, kw_only=True)
class PNDMConfig(SchedulerConfig):
    """Keys of diffusers' PNDMScheduler; restart_history is ours: see PNDMScheduler."""

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    restart_history: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": ("epsilon", "v_prediction")
    }


class PNDMScheduler(Scheduler):
    """Linear multistep in DDIM's space (PLMS), after an optional Runge-Kutta warm-up (PRK).

    Calls count from the first step of a run, as in diffusers. In an image-to-image run that begins
    within the schedule, the second call therefore repeats the first step, although its timestep is
    the next one, or the warm-up is run at other timesteps than its own. Both leave noise in the
    image, the warm-up much. With the key restart_history such a run has no repeated call, goes
    through the rest of the warm-up by steps of first order, and begins its history after that.

    Args:
      num_inference_steps: 1 <= steps <= num_train_timesteps; at least 4 with the warm-up.
    """

    config: PNDMConfig

    def __init__(self, config: Keys, num_inference_steps: int) -> None:
        self.config = PNDMConfig.from_mapping(config)
        spaced = np.round(self.config.spaced_timesteps(num_inference_steps))
        train_steps = self.config.num_train_timesteps
        self._ratio = train_steps // num_inference_steps
        self._warm_up = np.empty(0)
        if self.config.skip_prk_steps:  # the second timestep is visited twice
            timesteps = np.concatenate([spaced[:2], spaced[1:]])
        else:
            self._warm_up = _warm_up(spaced, self._ratio)
            timesteps = np.concatenate([self._warm_up, spaced[3:]])
        now = timesteps.astype(np.int64)
        if now.max() >= train_steps:
            raise InvalidArgumentError(
                f"PNDM: the warm-up of {num_inference_steps} steps leads to timestep {now.max()}, "
                f"beyond the {train_steps} training steps; set skip_prk_steps"
            )
        every = self.config.alphas_cumprod()
        scaling = of_alphas_cumprod(every[now], self.config)
        # kept: the sample at the start of a Runge-Kutta step, and its sum of predictions
        super().__init__(timesteps, scaling, remembered=4, kept=2)
        self.leaves_noise = not (self.config.skip_prk_steps or self.config.restart_history)
        self._alphas_cumprod: list[float] = every.tolist()
        self._final = 1.0 if self.config.set_alpha_to_one else self._alphas_cumprod[0]

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """One call of the warm-up (PRK) or of the multistep method (PLMS)."""
        call = i - self._history.first
        if self.config.restart_history and self._history.first:
            prev = self._restarted(noise_pred, i, sample)
            return StepResult(prev, self._original_later(noise_pred, i, sample))
        method = self._runge_kutta if call < len(self._warm_up) else self._multistep
        prev = method(noise_pred, i, call, sample)
        return StepResult(prev, self._original_later(noise_pred, i, sample))

    def _restarted(self, noise_pred: np.ndarray, i: int, sample: np.ndarray) -> np.ndarray:
        """A step of a run that begins within the schedule, with restart_history."""
        if i >= max(len(self._warm_up), 2):
            return self._multistep(noise_pred, i, i, sample)
        following = self.timesteps[i + 1 : i + 2].astype(np.int64).tolist()
        start = int(self.timesteps[i])
        w = self._transfer(start, *(following or [start - self._ratio]))
        return self._history.sum((w.sample, sample), (w.noise_pred, noise_pred))

    def _runge_kutta(
        self, noise_pred: np.ndarray, i: int, call: int, sample: np.ndarray
    ) -> np.ndarray:
        """One of the four calls of a step. Source: eq. 13."""
        history, (start_sample, total) = self._history, self._history.kept
        stage = call % 4
        start = int(self._warm_up[call - stage])
        end = int(self.timesteps[i]) - (0 if call % 2 else self._ratio // 2)
        if stage == 0:
            np.copyto(history.push(), noise_pred)
            np.copyto(start_sample, sample)
            total.fill(0.0)
        weighted_sum(total, history.scratch, (1.0, total), (_RUNGE_KUTTA[stage], noise_pred))
        w = self._transfer(start, end)
        prediction = total if stage == 3 else noise_pred
        return history.sum((w.sample, start_sample), (w.noise_pred, prediction))

    def _multistep(
        self, noise_pred: np.ndarray, i: int, call: int, sample: np.ndarray
    ) -> np.ndarray:
        """Eq. 12: the prediction is a sum of the last four. The first step takes two calls."""
        history, start_sample = self._history, self._history.kept[0]
        start = int(self.timesteps[i])
        if call == 1:  # the first step once more, with the mean of the predictions at its ends
            w = self._transfer(start + self._ratio, start)
            half = w.noise_pred / 2
            return history.sum((w.sample, start_sample), (half, noise_pred), (half, history[0]))
        np.copyto(history.push(), noise_pred)
        if call == 0:
            np.copyto(start_sample, sample)
        w = self._transfer(start, start - self._ratio)
        past = history.sum_newest([w.noise_pred * c for c in ADAMS_BASHFORTH[history.length - 1]])
        return weighted_sum(past, history.scratch, (1.0, past), (w.sample, sample))

    def _transfer(self, start: int, end: int) -> Combination:
        """The latents at timestep `end`, from SAMPLE at `start` and the prediction. Eq. 11."""
        now = self._alphas_cumprod[start]
        then = self._alphas_cumprod[end] if end >= 0 else self._final
        same = math.sqrt(then / now)
        predicted = (now - then) / (now * math.sqrt(1 - then) + math.sqrt(now * (1 - now) * then))
        if self.config.prediction_type == "v_prediction":
            same, predicted = same + predicted * math.sqrt(1 - now), predicted * math.sqrt(now)
        return Combination(sample=same, noise_pred=predicted)


def _warm_up(spaced: np.ndarray, ratio: int) -> np.ndarray:
    """Timesteps of the Runge-Kutta calls: the start of each of three steps, its middle twice, and
    its end. Raises: InvalidArgumentError: fewer than four steps."""
    if len(spaced) < 4:
        raise InvalidArgumentError(
            f"PNDM: the Runge-Kutta warm-up needs 4 steps or more, got {len(spaced)}; "
            "set skip_prk_steps"
        )
    calls: list[float] = []
    for start, end in itertools.pairwise(spaced[:4]):
        calls += [start, end + ratio // 2, end + ratio // 2, end]
    return np.array(calls)
