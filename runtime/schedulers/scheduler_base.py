"""The base of every scheduler: checks, noise levels, memory, and the step of one-step samplers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.clipping import clip_original
from sdexport.runtime.schedulers.latent_scaling import LatentScaling
from sdexport.runtime.schedulers.linear_combination import Combination
from sdexport.runtime.schedulers.scheduler_config import SchedulerConfig
from sdexport.runtime.schedulers.step_history import StepHistory, sum_of

Original = np.ndarray | Callable[[], np.ndarray]
"""Clean latents, or a function that computes them."""
Weights = TypeVar("Weights")


class StepResult:
    """The latents after a step, and the clean latents that the step predicted.

    Samplers whose formula does not use the clean latents compute them when `pred_original_sample`
    is first read, from the step's `sample` and `noise_pred`: do not change those arrays before.
    """

    __slots__ = ("_original", "prev_sample")

    def __init__(self, prev_sample: np.ndarray, original: Original) -> None:
        self.prev_sample = prev_sample
        self._original = original

    @property
    def pred_original_sample(self) -> np.ndarray:
        """The clean latents that the step predicted, same shape and dtype as prev_sample."""
        if callable(self._original):
            self._original = self._original()
        return self._original


class Scheduler:
    """The sampler of one generation: complete after construction, addressed by step index.

    Subclasses are built as `Name(config, num_inference_steps, **options)`. A run may begin at any
    step index (second-order samplers: at any multiple of `order`). Multistep samplers remember the
    predictions of a run; the memory is cleared wherever an index does not follow the one before.

    To add a sampler, set `config` and call `__init__`, then define one of these:

    - a one-step sampler sets `_weights`, from its formula over SAMPLE, NOISE_PRED, ORIGINAL and
      NOISE (see linear_combination), with `_table`;
    - any other defines `_step`, with `_history` as its memory.

    Args:
      timesteps: (steps,) float64.
      scaling: how latents hold signal and noise before each step.
      remembered: how many arrays `_history` remembers.
      kept: how many work arrays `_history.kept` has.
    Raises: InvalidArgumentError: a step would divide by zero.
    """

    order = 1
    """Calls of the UNet for each of num_inference_steps, 1 or 2."""

    has_midpoint = False
    """Whether the second call of a step is at a noise level between two steps."""

    inverts = False
    """Whether the steps lead from clean latents to noise."""

    leaves_noise = False
    """Whether a run that begins within the schedule leaves noise in its result, as in diffusers."""

    options: Mapping[str, Any]
    """The keyword arguments that it was built with."""

    config: SchedulerConfig
    _requested_steps: int | None
    _weights: Sequence[Combination]

    def __init__(
        self,
        timesteps: np.ndarray,
        scaling: LatentScaling,
        *,
        remembered: int = 0,
        kept: int = 0,
    ) -> None:
        self.timesteps = timesteps
        """Training timestep of each call of the UNet, (steps,) float64."""
        self.init_noise_sigma = scaling.init_noise_sigma
        """Standard deviation of the latents before the first step, if they are pure noise."""
        self._scaling = scaling
        self._history = StepHistory(remembered, kept)
        self._require_finite(scaling.originals)

    def __new__(
        cls, config: object = None, num_inference_steps: int | None = None, **options: Any
    ) -> Self:
        """Keep the arguments; subclasses read them in `__init__`."""
        built = super().__new__(cls)
        built.options, built._requested_steps = options, num_inference_steps
        return built

    @property
    def num_inference_steps(self) -> int:
        """The number of steps that it was built for; it has no other."""
        if isinstance(self._requested_steps, int):
            return self._requested_steps
        return -(-len(self.timesteps) // self.order)

    def fresh(self) -> Self:
        """The same scheduler without memory of earlier steps; both share their tables."""
        twin = copy.copy(self)
        twin._history = self._history.fresh()
        return twin

    def takes_noise(self, i: int) -> bool:
        """Whether step i needs fresh noise."""
        return False

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        """Scale latents (B, C, H/8, W/8) to what the UNet takes at step i; same shape and dtype."""
        scales = self._scaling.input_scales
        return sample if scales is None else sample * scales[i]

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Clean latents with the noise of step i: alpha * original + sigma * noise.

        Args:
          original, noise: (B, C, H/8, W/8) float32 or float64.
        Returns: the same shape and dtype as original.
        Source: DDPM, arXiv 2006.11239, eq. 4.
        """
        return self._scaling.alphas[i] * original + self._scaling.sigmas[i] * noise

    def original_weights(self, i: int) -> Combination:
        """The clean latents that step i predicts, of SAMPLE and NOISE_PRED, before any clipping."""
        return self._scaling.originals[i]

    def kept_level(self, i: int) -> int:
        """Index of the step whose noise inpainting adds to what it keeps, after step i.

        It is that of the latents, except at a midpoint: there, as in diffusers, the noise is
        already that of the next whole step.
        """
        return i + 2 if self.has_midpoint and i % 2 == 0 else i + 1

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by step i.

        Args:
          noise_pred: (B, C, H/8, W/8), the guided prediction of the UNet.
          i: step index, 0 <= i < len(timesteps), in rising order.
          sample: (B, C, H/8, W/8) float32 or float64, latents before the step, not scaled.
          noise: same shape, standard normal; required if takes_noise(i).
        Returns: StepResult; its arrays have the shape and dtype of sample and belong to the caller.
        Raises: InvalidArgumentError: shapes differ, the index is out of range, noise is missing,
          or the run of a second-order sampler begins between two steps.
        """
        if noise_pred.shape != sample.shape:
            raise self._error(
                f"noise_pred {noise_pred.shape} and sample {sample.shape} must have the same shape"
            )
        if sample.dtype.kind != "f":
            raise self._error(f"sample must be float32 or float64, got {sample.dtype}")
        if not 0 <= i < len(self.timesteps):
            raise self._error(f"step index {i} is not within 0..{len(self.timesteps) - 1}")
        if self.takes_noise(i) and (noise is None or noise.shape != sample.shape):
            got = "none" if noise is None else noise.shape
            raise self._error(f"step {i} needs noise of shape {sample.shape}, got {got}")
        self._history.begin(i, sample)
        if i % self.order and not self._history.continues:
            raise self._error(f"a run must begin at an even step index, got {i}")
        return self._step(noise_pred, i, sample, noise)

    def _step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None
    ) -> StepResult:
        """The step of `_weights`: a weighted sum of the clean latents and the arguments."""
        history, w = self._history, self._weights[i]
        terms = (w.sample, sample), (w.noise_pred, noise_pred), (w.noise, noise)
        if not w.original:
            return StepResult(history.sum(*terms), self._original_later(noise_pred, i, sample))
        original = self._original(noise_pred, i, sample)
        return StepResult(history.sum((w.original, original), *terms), original)

    def _original(self, noise_pred: np.ndarray, i: int, sample: np.ndarray) -> np.ndarray:
        """The clean latents that the UNet predicts, clipped as the configuration says."""
        w = self.original_weights(i)
        original = self._history.sum((w.sample, sample), (w.noise_pred, noise_pred))
        clip_original(original, self._history.scratch, self.config)
        return original

    def _original_later(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray
    ) -> Callable[[], np.ndarray]:
        """As _original, not clipped, when it is called."""
        w = self.original_weights(i)
        return partial(sum_of, (w.sample, sample), (w.noise_pred, noise_pred))

    def _table(self, formula: Callable[[int], Weights]) -> list[Weights]:
        """The weights of every step. Raises: InvalidArgumentError: one divides by zero."""
        try:
            table = [formula(i) for i in range(len(self.timesteps))]
        except ZeroDivisionError:
            table = []
        self._require_finite(table or math.nan)
        return table

    def _require_finite(self, weights: object) -> None:
        if not _is_finite(weights):
            raise self._error(
                "a step of this schedule divides by zero: two steps have the same noise level, or "
                "one is pure noise; use fewer steps, another timestep_spacing, or v_prediction for "
                "a model with rescale_betas_zero_snr"
            )

    def _error(self, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{type(self).__name__}: {problem}")


def _is_finite(weights: Any) -> bool:
    """Whether all numbers in nested lists and tuples are finite."""
    if isinstance(weights, float):
        return math.isfinite(weights)
    if isinstance(weights, Combination):
        return weights.is_finite
    return all(map(_is_finite, weights))
