"""The Scheduler protocol and the few functions that its families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

Original = np.ndarray | Callable[[], np.ndarray]
"""Clean latents, or what computes them."""


class StepResult:
    """What a step gives: the next latents, and the clean latents that it sees behind them.

    Most samplers step without the clean latents. Theirs are computed when they are first asked
    for, of the sample and noise_pred that the step was given and that must be unchanged till then.
    """

    __slots__ = ("_original", "prev_sample")

    def __init__(self, prev_sample: np.ndarray, original: Original) -> None:
        self.prev_sample = prev_sample
        self._original = original

    @property
    def pred_original_sample(self) -> np.ndarray:
        if callable(self._original):
            self._original = self._original()
        return self._original


class Scheduler(Protocol):
    """One generation's sampler, ready after construction and addressed by step index.

    The first `step` may be at any index (second-order samplers: a multiple of `order`); what a
    multistep sampler remembers begins there, and again wherever an index does not follow on.
    """

    @property
    def timesteps(self) -> np.ndarray:
        """Training timestep of each call of the UNet, (steps,) float64."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation that pure noise must have before the first step."""
        ...

    @property
    def order(self) -> int:
        """Calls of the UNet for each of num_inference_steps, 1 or 2."""
        ...

    def takes_noise(self, i: int) -> bool:
        """Whether step i asks for fresh noise."""
        ...

    def scale_model_input(self, sample: np.ndarray, i: int) -> np.ndarray:
        """Bring latents to the scale on which the UNet was trained; same shape and dtype."""
        ...

    def step(
        self, noise_pred: np.ndarray, i: int, sample: np.ndarray, noise: np.ndarray | None = None
    ) -> StepResult:
        """Advance latents by step i.

        Args:
          noise_pred: (B, C, H/8, W/8), the guided prediction of the UNet.
          i: step index, 0 <= i < len(timesteps), called in rising order.
          sample: (B, C, H/8, W/8) float32 or float64 latents before the step, not scaled.
          noise: of the same shape, standard normal; needed if takes_noise(i).
        Returns: StepResult, same shape and dtype as sample; both arrays are the caller's.
        Raises: ValueError: shapes differ, index out of range, or noise is missing.
        """
        ...

    def add_noise(self, original: np.ndarray, noise: np.ndarray, i: int) -> np.ndarray:
        """Clean latents as they would stand before step i."""
        ...


def check_step(
    scheduler: Scheduler,
    noise_pred: np.ndarray,
    i: int,
    sample: np.ndarray,
    noise: np.ndarray | None,
) -> None:
    """Raise ValueError unless the arrays match, the index exists and needed noise is there."""
    name = type(scheduler).__name__
    if noise_pred.shape != sample.shape:
        raise ValueError(
            f"{name}: noise_pred {noise_pred.shape} and sample {sample.shape} must have one shape"
        )
    if sample.dtype.kind != "f":
        raise ValueError(f"{name}: sample must be float32 or float64, got {sample.dtype}")
    steps = len(scheduler.timesteps)
    if not 0 <= i < steps:
        raise ValueError(f"{name}: step index {i} is not within 0..{steps - 1}")
    if scheduler.takes_noise(i) and (noise is None or noise.shape != sample.shape):
        got = "none" if noise is None else str(noise.shape)
        raise ValueError(f"{name}: step {i} needs noise of shape {sample.shape}, got {got}")


Term = tuple[float, np.ndarray]


class Memory:
    """What a sampler keeps between steps: a scratch array and its newest `depth` values.

    The arrays are its own and are never handed out, so that a step allocates nothing beside its
    results and nobody can change the past.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._block = np.empty((0, 0), np.float32)
        self._order: list[int] = []  # rows of the block, the newest first
        self._next = -1
        self.scratch = np.empty(0, np.float32)
        self.held = 0
        self.begin = 0

    def start(self, i: int, sample: np.ndarray) -> int:
        """Begin step i, forgetting the past if i does not follow on; the number of values held."""
        if sample.shape != self.scratch.shape or sample.dtype != self.scratch.dtype:
            self.scratch = np.empty(sample.shape, sample.dtype)
            self._block = np.zeros((self._depth, sample.size), sample.dtype)
            self._next = -1
        if i != self._next:
            self.held, self.begin = 0, i
            self._order = list(range(self._depth))  # sums in the same order, to the last bit
        self._next = i + 1
        return self.held

    def sum(self, *terms: Term) -> np.ndarray:
        """The weighted sum of arrays, in a new one."""
        return combine(np.empty(self.scratch.shape, self.scratch.dtype), self.scratch, *terms)

    def push(self) -> np.ndarray:
        """The array for a new value; the oldest is given up for it."""
        self._order.insert(0, self._order.pop())
        self.held = min(self.held + 1, self._depth)
        return self[0]

    def __getitem__(self, back: int) -> np.ndarray:
        """The newest value at 0, the one before at 1."""
        row: np.ndarray = self._block[self._order[back]]
        return row.reshape(self.scratch.shape)

    def mix(self, weights: Sequence[float]) -> np.ndarray:
        """The weighted sum of the newest values, in a new array; one pass over all of them."""
        by_row = np.zeros(self._depth, self._block.dtype)
        by_row[self._order[: len(weights)]] = weights
        mixed: np.ndarray = np.dot(by_row, self._block).reshape(self.scratch.shape)
        return mixed


def combine(out: np.ndarray, scratch: np.ndarray, *terms: Term) -> np.ndarray:
    """out = the weighted sum of arrays, without a new one; `out` may be the first of them."""
    total: np.ndarray | None = None  # `out`, or the first array while it stands for itself
    for weight, array in terms:
        if not weight:
            continue
        if total is None:
            total = array if weight == 1.0 else np.multiply(array, weight, out)
        elif weight == 1.0:
            total = np.add(total, array, out)
        else:
            total = np.add(total, np.multiply(array, weight, scratch), out)
    if total is not out:
        np.copyto(out, 0.0 if total is None else total)
    return out


def later(*terms: Term) -> Callable[[], np.ndarray]:
    """The weighted sum of arrays, when it is asked for."""
    return partial(_summed, terms)


def _summed(terms: tuple[Term, ...]) -> np.ndarray:
    first = terms[0][1]
    return combine(np.empty_like(first), np.empty_like(first), *terms)


def original_weights(prediction_type: str, alpha: float, sigma: float) -> tuple[float, float]:
    """Weights of (sample, noise_pred) that give the clean latents, sample = alpha x + sigma noise.

    Source: DDPM, arXiv 2006.11239, eq. 15; v: arXiv 2202.00512, appendix D.
    """
    if prediction_type == "epsilon":
        return (1 / alpha, -sigma / alpha) if alpha else (math.inf, -math.inf)
    return (alpha, -sigma) if prediction_type == "v_prediction" else (0.0, 1.0)


def epsilon_weights(prediction_type: str, alpha: float, sigma: float) -> tuple[float, float]:
    """Weights of (sample, noise_pred) that give the noise in the sample."""
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        return sigma, alpha
    return 1 / sigma, -alpha / sigma


def ve_original_weights(prediction_type: str, sigma: float) -> tuple[float, float]:
    """As original_weights for a variance-exploding sample = x + sigma noise."""
    alpha = 1 / math.hypot(sigma, 1)
    of_sample, of_prediction = original_weights(prediction_type, alpha, sigma * alpha)
    return (1.0, -sigma) if prediction_type == "epsilon" else (of_sample * alpha, of_prediction)


def slope_weights(seen: tuple[float, float], sigma: float) -> tuple[float, float]:
    """Weights of (sample, noise_pred) in dx/dsigma = (sample - clean) / sigma, clean as `seen`.

    Source: Karras et al. 2022, arXiv 2206.00364, eq. 1 and 3.
    """
    return (1 - seen[0]) / sigma, -seen[1] / sigma


def require_finite(name: str, *tables: object) -> None:
    """Raise ValueError if a table of coefficients holds NaN or infinity."""
    for table in tables:
        if not np.isfinite(np.asarray(table, np.float64)).all():
            raise ValueError(
                f"{name}: this schedule divides by zero: it visits one noise level twice, or pure "
                "noise; take fewer steps, another timestep_spacing, or v_prediction for a model "
                "with rescale_betas_zero_snr"
            )


class Limits(Protocol):
    """The keys of a configuration that limit clean latents."""

    @property
    def clip_sample(self) -> bool: ...
    @property
    def clip_sample_range(self) -> float: ...
    @property
    def thresholding(self) -> bool: ...
    @property
    def dynamic_thresholding_ratio(self) -> float: ...
    @property
    def sample_max_value(self) -> float: ...


def limit(original: np.ndarray, scratch: np.ndarray, config: Limits) -> bool:
    """Clip clean latents in place, or threshold them by percentile; whether anything was done.

    Source: dynamic thresholding: Imagen, arXiv 2205.11487, sec. 2.3.
    """
    if config.thresholding:
        flat, sizes = original.reshape(len(original), -1), scratch.reshape(len(original), -1)
        np.abs(flat, out=sizes)
        ratio = config.dynamic_thresholding_ratio
        highest = np.quantile(sizes, ratio, axis=1, keepdims=True, overwrite_input=True)
        highest = np.clip(highest, 1.0, config.sample_max_value).astype(flat.dtype)
        np.clip(flat, -highest, highest, out=flat)
        flat /= highest
        return True
    if config.clip_sample:
        np.clip(original, -config.clip_sample_range, config.clip_sample_range, out=original)
        return True
    return False
