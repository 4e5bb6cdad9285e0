"""Blends of prompt embeddings, constant or changing from step to step.

These functions work on the output of the text encoder; token_embeds.py changes its input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown

Method = Literal["linear", "slerp"]
Weights = Callable[[int, int], Sequence[float]]
"""(i, steps) to the weights at step i of `steps`, one weight for each part of a blend."""
METHODS = ("linear", "slerp")
_PARALLEL = 0.9995


def blend(
    embeds: Sequence[np.ndarray], weights: Sequence[float], *, method: Method = "linear"
) -> np.ndarray:
    """Blend the embeddings of several prompts into one.

    Args:
      embeds: one or more arrays of one shape, (B, S, width) or pooled (B, width), float32.
      weights: one finite number for each array.
      method: "linear" is the weighted sum, with the weights as they are: 0.5 and 0.5 average, 1 and
        0.3 add. "slerp" interpolates two arrays on the arc between them, token by token, at
        weights[1] / (weights[0] + weights[1]); its weights are 0 or more and not both 0.
    Returns: a new float32 array of the same shape.
    Raises: InvalidArgumentError: shapes, dtypes or weights of another kind; unknown method.
    Source: slerp: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
    Example:
        >>> import numpy as np
        >>> from sdexport.runtime.text.blending import blend
        >>> cat, dog = np.zeros((1, 77, 768), np.float32), np.ones((1, 77, 768), np.float32)
        >>> blend([cat, dog], [0.75, 0.25])[0, 0, :3]
        array([0.25, 0.25, 0.25], dtype=float32)
    """
    _check_parts(embeds)
    weights = [float(weight) for weight in weights]
    if len(weights) != len(embeds) or not np.isfinite(weights).all():
        raise InvalidArgumentError(
            f"blend: expected a finite weight for each of {len(embeds)} embeddings, got {weights}"
        )
    if method not in METHODS:
        raise InvalidArgumentError(
            f"blend: unknown method {shown(method)}; choose one of {', '.join(METHODS)}"
        )
    if method == "slerp":
        if len(embeds) != 2 or min(weights) < 0 or not sum(weights):
            raise InvalidArgumentError(
                "blend: slerp takes two embeddings and two weights of 0 or more that are not "
                f"both 0, got {len(embeds)} and {weights}"
            )
        return _slerp(embeds[0], embeds[1], weights[1] / sum(weights))
    mixed = np.zeros(embeds[0].shape, dtype=np.float64)
    for part, weight in zip(embeds, weights, strict=True):
        if weight:
            mixed += part * np.float64(weight)
    return mixed.astype(np.float32)


def blend_prompts(
    prompts: Mapping[str, float],
    encode: Callable[[list[str]], np.ndarray],
    *,
    method: Method = "linear",
) -> np.ndarray:
    """Blend prompts by weight: `blend_prompts({"a panda": 0.5, "a cat": 0.5}, pipe.encode)`.

    Args:
      prompts: prompt to weight, at least one.
      encode: called once with all prompts; returns embeddings (B, S, width) float32.
      method: see `blend`.
    Returns: (1, S, width) float32.
    Raises: InvalidArgumentError: no prompt; see `blend`.
    """
    if not prompts:
        raise InvalidArgumentError("blend: expected at least one prompt with a weight")
    embeds = encode(list(prompts))
    parts = [embeds[i : i + 1] for i in range(len(prompts))]
    return blend(parts, list(prompts.values()), method=method)


class EmbedSchedule:
    """A blend that changes from step to step; pass `embeds_at` to a pipeline as `prompt_embeds`.

    Args:
      embeds: arrays of one shape, see `blend`.
      weights: the weights at each step, of which the last are used for all further steps; or a
        function of (i, steps) that returns them, such as `crossfade()`.
      method: see `blend`.
    Raises: InvalidArgumentError: no weights; see `blend`.
    """

    def __init__(
        self,
        embeds: Sequence[np.ndarray],
        weights: Weights | Sequence[Sequence[float]],
        *,
        method: Method = "linear",
    ) -> None:
        _check_parts(embeds)
        if not callable(weights):
            if not weights:
                raise InvalidArgumentError(
                    "blend: a schedule needs the weights of at least one step"
                )
            for each in weights:
                blend([part[:0] for part in embeds], each, method=method)
        self._embeds, self._weights, self._method = list(embeds), weights, method
        self._last: tuple[tuple[float, ...], np.ndarray] | None = None

    def embeds_at(self, i: int, steps: int) -> np.ndarray:
        """The embeddings at step i, 0 <= i < steps.

        Returns: a read-only float32 array; the same object as before if the weights have not
          changed, so that callers can compare with `is`.
        Raises: InvalidArgumentError: no such step; see `blend`.
        """
        if not 0 <= i < steps:
            raise InvalidArgumentError(f"blend: expected a step from 0 to {steps - 1}, got {i}")
        if callable(self._weights):
            weights = self._weights(i, steps)
        else:
            weights = self._weights[min(i, len(self._weights) - 1)]
        key = tuple(float(weight) for weight in weights)
        if self._last is None or self._last[0] != key:
            mixed = blend(self._embeds, key, method=self._method)
            mixed.flags.writeable = False
            self._last = key, mixed
        return self._last[1]


def crossfade(start: float = 0.0, end: float = 1.0) -> Weights:
    """Weights that change linearly from the first of two prompts to the second.

    Args:
      start, end: fractions of the steps, 0 <= start <= end <= 1. Until `start` only the first
        prompt counts, from `end` only the second; if they are equal, the prompts are swapped there.
    Raises: InvalidArgumentError: out of range or out of order.
    """
    if not 0 <= start <= end <= 1:
        raise InvalidArgumentError(
            f"crossfade: expected 0 <= start <= end <= 1, got {start} and {end}"
        )

    def weights(i: int, steps: int) -> tuple[float, float]:
        at = i / max(steps - 1, 1)
        if start == end:
            share = float(at >= start)
        else:
            share = min(max((at - start) / (end - start), 0.0), 1.0)
        return 1 - share, share

    return weights


def mix_tokens(
    embeds: np.ndarray, other: np.ndarray, mask: np.ndarray, *, share: float = 1.0
) -> np.ndarray:
    """Blend two embeddings at some tokens only, after the text encoder.

    Args:
      embeds, other: (B, S, width) float32, of two prompts whose tokens correspond.
      mask: (B, S) bool, from `sdexport.runtime.text.token_embeds.token_mask`.
      share: weight of `other`, finite; 1 replaces.
    Returns: (B, S, width) float32; a new array, equal to `embeds` outside of the mask.
    Raises: InvalidArgumentError: shapes, dtypes or share of another kind.
    """
    _check_parts([embeds, other])
    if mask.shape != embeds.shape[:-1] or mask.dtype != np.bool_ or not np.isfinite(share):
        raise InvalidArgumentError(
            f"mix_tokens: expected a mask bool {embeds.shape[:-1]} and a finite share, "
            f"got {mask.dtype} {mask.shape} and {share}"
        )
    mixed = embeds.copy()
    mixed[mask] = blend([embeds[mask], other[mask]], [1 - share, share])
    return mixed


def _check_parts(embeds: Sequence[np.ndarray]) -> None:
    shapes = {(part.shape, part.dtype.name) for part in embeds}
    if len(shapes) != 1 or embeds[0].dtype != np.float32:
        found = ", ".join(f"{part.dtype} {part.shape}" for part in embeds) or "none"
        raise InvalidArgumentError(f"blend: expected float32 embeddings of one shape, got {found}")


def _slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Interpolate along the arc, over the last axis; linearly where vectors are almost parallel."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1, keepdims=True) * np.linalg.norm(b, axis=-1, keepdims=True)
    cosine = np.sum(a * b, axis=-1, keepdims=True) / np.where(lengths == 0, 1, lengths)
    flat = (np.abs(cosine) > _PARALLEL) | (lengths == 0)
    angle = np.arccos(np.where(flat, 0, cosine))
    weight_a = np.where(flat, 1 - share, np.sin((1 - share) * angle) / np.sin(angle))
    weight_b = np.where(flat, share, np.sin(share * angle) / np.sin(angle))
    mixed: np.ndarray = (weight_a * a + weight_b * b).astype(np.float32)
    return mixed
