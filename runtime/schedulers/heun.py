"""Heun's second-order method. Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.runtime.schedulers.common import (
    Memory,
    Original,
    StepResult,
    check_step,
    later,
    require_finite,
    slope_weights,
    ve_original_weights,
)
from sdexport.runtime.schedulers.sigmas import (
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
            self._step_weights(ve_original_weights(kind, sigma), i, sigma)
            for i, sigma in enumerate(self.sigmas[:-1].tolist())
        ]
        require_finite("HeunDiscreteScheduler", self._weights)
        self._scales = input_scales(self.sigmas)
        self._memory = Memory(1)  # the latents after half of the slope at the start of a step

    def _step_weights(
        self, seen: tuple[float, float], i: int, sigma: float
    ) -> tuple[float, float, float, float]:
        """Of (sample, noise_pred) in the clean latents, then in half of the step's slope.

        With clip_sample the last is of (sample, clean).
        """
        width = float(self.sigmas[i] - self.sigmas[i - 1] if i % 2 else np.diff(self.sigmas)[i])
        of_clean = (0.0, 1.0)
        same, other = slope_weights(of_clean if self.config.clip_sample else seen, sigma)
        return (*seen, width / 2 * same, width / 2 * other)

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
        memory, (a, b, same, other) = self._memory, self._weights[i]
        check_pair(memory, i, sample)
        original: Original = later((a, sample), (b, noise_pred))
        shown = noise_pred
        if self.config.clip_sample:
            reach = self.config.clip_sample_range
            seen = memory.sum((a, sample), (b, noise_pred))
            original = shown = np.clip(seen, -reach, reach, out=seen)
        if i % 2:
            return StepResult(
                memory.sum((1.0, memory[0]), (same, sample), (other, shown)), original
            )
        prev = memory.sum((same, sample), (other, shown))  # half of the slope, so far
        halfway = np.add(sample, prev, memory.push())
        return StepResult(np.add(halfway, prev, prev), original)

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        return original + float(self.sigmas[i]) * noise


def check_pair(memory: Memory, i: int, sample: np.ndarray) -> None:
    """Begin step i; raise ValueError for the second half of a step without its first."""
    if not memory.start(i, sample) and i % 2:
        raise ValueError(f"second-order samplers begin at an even step index, got {i}")
