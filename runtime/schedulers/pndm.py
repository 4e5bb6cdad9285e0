"""Pseudo numerical methods. Source: Liu et al. 2022, arXiv 2202.09778."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sdexport.runtime.schedulers import noise_schedules
from sdexport.runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    combine,
    later,
    original_weights,
    require_finite,
)
from sdexport.runtime.schedulers.config import ScheduleConfig

# Adams-Bashforth weights of the newest predictions, by how many there are. Source: eq. 12.
_MULTISTEP = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@dataclass(frozen=True, kw_only=True)
class PNDMConfig(ScheduleConfig):
    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prediction_type": ("epsilon", "v_prediction")
    }


class PNDMScheduler:
    """Linear multistep in DDIM's space (PLMS), after an optional Runge-Kutta warm-up (PRK).

    Calls count from the first step, wherever that is; so does diffusers, which therefore misses
    the repeated second call when an image-to-image run begins later.

    Args:
      config: keys of diffusers' PNDMScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps; at least 4 with the warm-up.
    Raises: ValueError: a value out of range.
    """

    init_noise_sigma = 1.0
    order = 1

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        self.config = PNDMConfig.from_mapping(config)
        train_steps = self.config.num_train_timesteps
        steps = self.config.check_steps(num_inference_steps)
        spaced = np.round(
            noise_schedules.spaced_timesteps(
                self.config.timestep_spacing, steps, train_steps, self.config.steps_offset
            )
        )
        self._ratio = train_steps // steps
        self._warm_up = np.empty(0)
        if self.config.skip_prk_steps:  # the second timestep is visited twice
            self.timesteps = np.concatenate([spaced[:2], spaced[1:]])
        else:
            self._warm_up = _warm_up(spaced, self._ratio)
            self.timesteps = np.concatenate([self._warm_up, spaced[3:]])
        kept = noise_schedules.alphas_cumprod(self.config.betas())
        now = self.timesteps.astype(np.int64)
        if now.max() >= train_steps:
            raise ValueError(
                f"PNDM: the warm-up of {steps} steps leads to timestep {now.max()}, beyond the "
                f"{train_steps} training steps; set skip_prk_steps"
            )
        self._alpha, self._sigma = np.sqrt(kept[now]), np.sqrt(1 - kept[now])
        self._kept: list[float] = kept.tolist()
        self._final = 1.0 if self.config.set_alpha_to_one else self._kept[0]
        # of (sample, noise_pred) in the clean latents; what follows depends on the first step
        self._weights = [
            original_weights(self.config.prediction_type, float(a), float(s))
            for a, s in zip(self._alpha, self._sigma, strict=True)
        ]
        require_finite("PNDMScheduler", self._weights)
        self._memory = Memory(4)
        self._base = Memory(2)  # the sample at the start of a Runge-Kutta step, and its sum

    def takes_noise(self, i: int) -> bool:
        return False

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by one call of PRK or PLMS; see Scheduler.step."""
        check_step(self, noise_pred, i, sample, noise)
        memory = self._memory
        memory.start(i, sample)
        self._base.start(i, sample)
        call = i - memory.begin
        if call == 0:
            self._base.push(), self._base.push()
        a, b = self._weights[i]
        original = later((a, sample), (b, noise_pred))
        if call < len(self._warm_up):
            prev = self._runge_kutta(noise_pred, i, call, sample)
        else:
            prev = self._multistep(noise_pred, i, call, sample)
        return StepResult(prev, original)

    def _runge_kutta(
        self, noise_pred: np.ndarray, i: int, call: int, sample: np.ndarray
    ) -> np.ndarray:
        """One of the four calls of a step. Source: eq. 13."""
        memory, base, total = self._memory, self._base[0], self._base[1]
        stage = call % 4
        start = int(self._warm_up[call - stage])
        goal = int(self.timesteps[i]) - (0 if call % 2 else self._ratio // 2)
        if stage == 0:
            np.copyto(memory.push(), noise_pred)
            np.copyto(base, sample)
            total.fill(0.0)
        combine(total, memory.scratch, (1.0, total), (_RUNGE_KUTTA[stage], noise_pred))
        same, predicted = self._transfer(start, goal)
        return memory.sum((same, base), (predicted, total if stage == 3 else noise_pred))

    def _multistep(
        self, noise_pred: np.ndarray, i: int, call: int, sample: np.ndarray
    ) -> np.ndarray:
        memory, base = self._memory, self._base[0]
        start = int(self.timesteps[i])
        goal = start - self._ratio
        if call == 1:  # the first step once more, with the mean of both its ends
            same, predicted = self._transfer(start + self._ratio, start)
            half = predicted / 2
            return memory.sum((same, base), (half, noise_pred), (half, memory[0]))
        np.copyto(memory.push(), noise_pred)
        if call == 0:
            np.copyto(base, sample)
        same, predicted = self._transfer(start, goal)
        past = memory.mix([predicted * weight for weight in _MULTISTEP[memory.held - 1]])
        return combine(past, memory.scratch, (1.0, past), (same, sample))

    def _transfer(self, start: int, goal: int) -> tuple[float, float]:
        """Weights of (sample, prediction) from one timestep to another. Source: eq. 11."""
        now = self._kept[start]
        then = self._kept[goal] if goal >= 0 else self._final
        same = math.sqrt(then / now)
        predicted = (now - then) / (now * math.sqrt(1 - then) + math.sqrt(now * (1 - now) * then))
        if self.config.prediction_type == "v_prediction":
            return same + predicted * math.sqrt(1 - now), predicted * math.sqrt(now)
        return same, predicted

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Source: DDPM, arXiv 2006.11239, eq. 4."""
        return float(self._alpha[i]) * original + float(self._sigma[i]) * noise


def _warm_up(spaced: np.ndarray, ratio: int) -> np.ndarray:
    """Timesteps of the Runge-Kutta calls: each of three steps at its start, twice halfway, and at
    its end. Raises: ValueError: fewer than four steps."""
    if len(spaced) < 4:
        raise ValueError(
            f"PNDM: the Runge-Kutta warm-up needs 4 steps or more, got {len(spaced)}; "
            "set skip_prk_steps"
        )
    calls: list[float] = []
    for start, end in itertools.pairwise(spaced[:4]):
        calls += [start, end + ratio // 2, end + ratio // 2, end]
    return np.array(calls)
