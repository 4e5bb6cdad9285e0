"""Heun's second-order method. Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.schedulers.common import (
    Memory,
    StepResult,
    check_step,
    combine,
    require_finite,
    ve_original_weights,
)
from runtime.schedulers.sigmas import (
    SpreadConfig,
    input_scales,
    sigma_grid,
    start_sigma,
    training_sigmas,
)


@dataclass(frozen=True, kw_only=True)
class HeunConfig(SpreadConfig):
    beta_start: float = 0.00085
    beta_end: float = 0.012
    clip_sample: bool = False
    clip_sample_range: float = 1.0


class HeunDiscreteScheduler:
    """A step to the next noise level, and again with the mean of the slopes at both its ends.

    Timesteps come in pairs but for the first one; a run may begin at any even index.

    Args:
      config: keys of diffusers' HeunDiscreteScheduler; missing ones take its defaults.
      num_inference_steps: 1 <= steps <= num_train_timesteps; 2 steps - 1 calls of the UNet.
      timesteps: own falling timesteps instead of spaced ones.
    Raises: ValueError: a value out of range.
    """

    order = 2

    def __init__(
        self,
        config: Mapping[str, Any],
        num_inference_steps: int,
        *,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        self.config = HeunConfig.from_mapping(config)
        every = training_sigmas(self.config)
        spaced, sigmas = sigma_grid(self.config, every, num_inference_steps, timesteps)
        self.timesteps = np.append(spaced[:1], np.repeat(spaced[1:], 2))
        self.sigmas = np.append(sigmas[:1], [*np.repeat(sigmas[1:], 2), 0.0])
        kind = self.config.prediction_type
        self._weights = [
            (*ve_original_weights(kind, sigma), 1 / sigma) for sigma in self.sigmas[:-1].tolist()
        ]
        require_finite("HeunDiscreteScheduler", self._weights)
        self._scales = input_scales(self.sigmas)
        self._memory = Memory(2)  # the sample and the slope at the start of a step

    @property
    def init_noise_sigma(self) -> float:
        return start_sigma(self.config, self.sigmas)

    def takes_noise(self, i: int) -> bool:
        return False

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        return sample * self._scales[i]

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Half a step of Heun; see Scheduler.step.

        Raises: ValueError: also, an odd index that does not follow on.
        """
        check_step(self, noise_pred, i, sample, noise)
        memory, (a, b, inverse) = self._memory, self._weights[i]
        check_pair(memory, i, sample)
        original = memory.sum((a, sample), (b, noise_pred))
        if self.config.clip_sample:
            reach = self.config.clip_sample_range
            np.clip(original, -reach, reach, out=original)
        if i % 2:
            width = float(self.sigmas[i] - self.sigmas[i - 1]) / 2
            slope = width * inverse
            start = ((1.0, memory[0]), (width, memory[1]))
            return StepResult(memory.sum(*start, (slope, sample), (-slope, original)), original)
        slope_here = memory.push()
        combine(slope_here, memory.scratch, (inverse, sample), (-inverse, original))
        np.copyto(memory.push(), sample)
        width = float(self.sigmas[i + 1] - self.sigmas[i])
        return StepResult(memory.sum((1.0, sample), (width, slope_here)), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        return original + float(self.sigmas[i]) * noise


def check_pair(memory: Memory, i: int, sample: np.ndarray) -> None:
    """Begin step i; raise ValueError for the second half of a step without its first."""
    if not memory.start(i, sample) and i % 2:
        raise ValueError(f"second-order samplers begin at an even step index, got {i}")
