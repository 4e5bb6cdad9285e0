"""Embeddings of prompts as things of their own: mixed, and changed over the steps.

All of this works on what the text encoder gave; text.token_embeds changes what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

Method = Literal["linear", "slerp"]
Weights = Callable[[int, int], Sequence[float]]
METHODS = ("linear", "slerp")
_PARALLEL = 0.9995


def blend(
    embeds: Sequence[np.ndarray], weights: Sequence[float], *, method: Method = "linear"
) -> np.ndarray:
    """Mix embeddings of several prompts into one.

    Args:
      embeds: one or more arrays of one shape, (B, S, width) float32, or pooled (B, width).
      weights: one finite number for each. "linear" takes them as they are: 0.5 and 0.5 is the
        middle, 1 and 0.3 adds. "slerp" mixes exactly two on the arc between them, token by token,
        at weights[1] / (weights[0] + weights[1]).
    Returns: float32 array of the same shape; a new one.
    Raises: ValueError: numbers, shapes or dtypes do not fit; unknown method.
    Source: slerp: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
    """
    _check_parts(embeds)
    weights = [float(weight) for weight in weights]
    if len(weights) != len(embeds) or not np.isfinite(weights).all():
        raise ValueError(
            f"blend: expected a finite weight for each of {len(embeds)} embeddings, got {weights}"
        )
    if method not in METHODS:
        raise ValueError(f"blend: unknown method '{method}'; choose one of {', '.join(METHODS)}")
    if method == "slerp":
        if len(embeds) != 2 or min(weights) < 0 or not sum(weights):
            raise ValueError(
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
    """Mix prompts by weight: `blend_prompts({"a panda": 0.5, "a cat": 0.5}, encode)`.

    Args:
      encode: prompts to embeddings (B, S, width), all in one call.
    Returns: (1, S, width) float32.
    Raises: ValueError: see blend.
    """
    if not prompts:
        raise ValueError("blend: expected at least one prompt with a weight")
    embeds = encode(list(prompts))
    parts = [embeds[i : i + 1] for i in range(len(prompts))]
    return blend(parts, list(prompts.values()), method=method)


class EmbedSchedule:
    """A blend that changes from step to step.

    Args:
      embeds: parts of one shape, see `blend`.
      weights: for each step its weights, the last ones staying for further steps; or a function of
        (i, steps) that gives them, such as `crossfade()`.
    Raises: ValueError: see blend; no weights.
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
                raise ValueError("blend: a schedule needs the weights of one step at least")
            for each in weights:
                blend([part[:0] for part in embeds], each, method=method)
        self._embeds, self._weights, self._method = list(embeds), weights, method
        self._last: tuple[tuple[float, ...], np.ndarray] | None = None

    def embeds_at(self, i: int, steps: int) -> np.ndarray:
        """Embeddings for step i, 0 <= i < steps; the same object as long as the weights stay.

        So whoever asks can tell by `is` whether they have to be handed on anew. Not to be
        written to.
        Raises: ValueError: no such step; see blend.
        """
        if not 0 <= i < steps:
            raise ValueError(f"blend: expected a step of 0..{steps - 1}, got {i}")
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
    """Weights of two parts: the first until `start`, the second from `end`, evenly between.

    Args:
      start, end: shares of the way from the first step to the last, 0 <= start <= end <= 1; if they
        are equal, that is where the one prompt is switched for the other.
    Raises: ValueError: out of order.
    """
    if not 0 <= start <= end <= 1:
        raise ValueError(f"crossfade: expected 0 <= start <= end <= 1, got {start} and {end}")

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
    """Mix two embeddings at some tokens only, after the text encoder.

    Args:
      embeds, other: (B, S, width) float32 of two prompts, token beside token.
      mask: (B, S) bool, from `sdexport.runtime.text.token_embeds.token_mask`.
      share: of `other`, finite; 1 replaces.
    Returns: (B, S, width) float32; a new array, equal to `embeds` outside of the mask.
    Raises: ValueError: shapes, dtypes or share do not fit.
    """
    _check_parts([embeds, other])
    if mask.shape != embeds.shape[:-1] or mask.dtype != np.bool_ or not np.isfinite(share):
        raise ValueError(
            f"mix_tokens: expected a mask bool {embeds.shape[:-1]} and a finite share, "
            f"got {mask.dtype} {mask.shape} and {share}"
        )
    mixed = embeds.copy()
    mixed[mask] = blend([embeds[mask], other[mask]], [1 - share, share])
    return mixed


def _check_parts(embeds: Sequence[np.ndarray]) -> None:
    shapes = {(part.shape, part.dtype.name) for part in embeds}
    if len(shapes) != 1 or embeds[0].dtype != np.float32:
        came = ", ".join(f"{part.dtype} {part.shape}" for part in embeds) or "none"
        raise ValueError(f"blend: expected float32 embeddings of one shape, got {came}")


def _slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Along the arc between two vectors, the last axis; evenly where they are all but parallel."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1, keepdims=True) * np.linalg.norm(b, axis=-1, keepdims=True)
    cosine = np.sum(a * b, axis=-1, keepdims=True) / np.where(lengths == 0, 1, lengths)
    flat = (np.abs(cosine) > _PARALLEL) | (lengths == 0)
    angle = np.arccos(np.where(flat, 0, cosine))
    ours = np.where(flat, 1 - share, np.sin((1 - share) * angle) / np.sin(angle))
    theirs = np.where(flat, share, np.sin(share * angle) / np.sin(angle))
    mixed: np.ndarray = (ours * a + theirs * b).astype(np.float32)
    return mixed
