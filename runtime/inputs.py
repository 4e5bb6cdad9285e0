"""What a call of the pipeline is given, checked and brought into arrays."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from runtime import checks
from runtime.conditioning import Encoded
from runtime.denoise import Embeds
from runtime.image import ImageInput, open_image, open_mask, resize, to_sample
from runtime.noise import TorchGenerator, check_seed

MAX_SIDE = 16384


@dataclass(frozen=True)
class Given:
    """Size to be painted, and what it begins from.

    image: (n, 3, height, width) float32 in -1..1. mask: (1, 1, height, width) float32, 0 or 1.
    """

    width: int
    height: int
    image: np.ndarray | None = None
    mask: np.ndarray | None = None


def given(
    source: ImageInput | Sequence[ImageInput] | None,
    mask: ImageInput | None,
    height: int | None,
    width: int | None,
    resize_mode: str,
    default_size: tuple[int, int],
    unit: int,
) -> Given:
    """Pictures and mask at the size that will be painted.

    Args:
      height, width: multiples of `unit`; default those of the first picture, rounded down, or
        else default_size, (height, width).
    Raises: ValueError: sizes or pictures that cannot be. FileNotFoundError: no such picture.
    """
    if source is None and mask is not None:
        raise ValueError("mask_image needs an image to be painted into")
    sources: list[Any] = list(source) if isinstance(source, (list, tuple)) else [source]
    opened = [open_image(s) for s in sources if s is not None]
    if source is not None and not opened:
        raise ValueError("image: expected at least one picture")
    if opened:
        default_size = opened[0].height // unit * unit, opened[0].width // unit * unit
    size = (
        _side("width", default_size[1] if width is None else width, unit),
        _side("height", default_size[0] if height is None else height, unit),
    )
    samples = [to_sample(resize(picture, *size, resize_mode)) for picture in opened]
    return Given(
        *size,
        image=np.concatenate(samples) if samples else None,
        mask=None if mask is None else open_mask(mask, *size, resize_mode),
    )


def _side(name: str, value: int, unit: int) -> int:
    try:
        side = checks.whole(name, value, unit, MAX_SIDE)
    except ValueError:
        side = -1
    if side % unit:
        raise ValueError(
            f"{name} must be a multiple of {unit} from {unit} to {MAX_SIDE}, got {value!r:.40}"
        )
    return side


class Noise:
    """Noise for all pictures: from one generator, or from one for each of them."""

    def __init__(self, seed: int | Sequence[int] | None, count: int, device: str) -> None:
        if seed is None:
            first = secrets.randbits(32)
            seed = [(first + i) % 2**32 for i in range(count)]
        self.each = isinstance(seed, Sequence)
        self.seeds = list(seed) if isinstance(seed, Sequence) else [check_seed(seed)] * count
        if len(self.seeds) != count:
            raise ValueError(f"got {len(self.seeds)} seeds for {count} pictures")
        sources = self.seeds if self.each else self.seeds[:1]
        self._generators = [TorchGenerator(number, device) for number in sources]

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        if not self.each:
            return self._generators[0].randn(shape)
        return np.concatenate([g.randn((1, *shape[1:])) for g in self._generators])


@dataclass(frozen=True)
class Rows:
    """Embeddings with a row for each picture, the same for all steps or a function of the step."""

    embeds: Embeds
    pooled: np.ndarray | None = None

    def zeros(self) -> Rows:
        """As many rows that say nothing."""
        embeds = self.embeds(0, 1) if callable(self.embeds) else self.embeds
        pooled = None if self.pooled is None else np.zeros_like(self.pooled)
        return Rows(np.zeros_like(embeds), pooled)


@dataclass(frozen=True)
class GivenEmbeds:
    """Embeddings that the caller brings: (1 or B, n, width), pooled ones (1 or B, width)."""

    prompt_embeds: Embeds | None = None
    negative_prompt_embeds: np.ndarray | None = None
    pooled_prompt_embeds: np.ndarray | None = None
    negative_pooled_prompt_embeds: np.ndarray | None = None

    @property
    def is_empty(self) -> bool:
        return self.prompt_embeds is None and self.negative_prompt_embeds is None

    def positive(self, count: int) -> Rows | None:
        """Raises: ValueError: arrays do not fit."""
        embeds = self.prompt_embeds
        if embeds is None:
            return None
        pooled = rows("pooled_prompt_embeds", self.pooled_prompt_embeds, count, 2)
        if callable(embeds):
            return Rows(_EachStep(embeds, count), pooled)
        return Rows(rows("prompt_embeds", embeds, count, 3), pooled)

    def negative(self, count: int) -> Rows | None:
        """Raises: ValueError: arrays do not fit."""
        embeds = rows("negative_prompt_embeds", self.negative_prompt_embeds, count, 3)
        pooled = rows("negative_pooled_prompt_embeds", self.negative_pooled_prompt_embeds, count, 2)
        return None if embeds is None else Rows(embeds, pooled)


class _EachStep:
    """Embeddings that change over the steps, below the negative ones if there are any.

    Gives the same object as long as the function gives the same one.
    """

    def __init__(
        self,
        function: Callable[[int, int], np.ndarray],
        count: int,
        negative: np.ndarray | None = None,
    ) -> None:
        self.function, self.count, self._negative = function, count, negative
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, i: int, steps: int) -> np.ndarray:
        given = self.function(i, steps)
        last = self._last
        if last is None or last[0] is not given:
            whole = rows("prompt_embeds", given, self.count, 3)
            if self._negative is not None:
                whole = _stacked(self._negative, whole)
            self._last = last = (given, whole)
        return last[1]


@overload
def rows(name: str, embeds: np.ndarray, count: int, ndim: int) -> np.ndarray: ...
@overload
def rows(name: str, embeds: None, count: int, ndim: int) -> None: ...
@overload
def rows(name: str, embeds: np.ndarray | None, count: int, ndim: int) -> np.ndarray | None: ...
def rows(name: str, embeds: np.ndarray | None, count: int, ndim: int) -> np.ndarray | None:
    """Embeddings as one row for each picture; None stays None.

    Raises: ValueError: another dtype or shape, NaN or infinity.
    """
    if embeds is None:
        return None
    is_array = isinstance(embeds, np.ndarray)
    fits = is_array and embeds.ndim == ndim and embeds.dtype == np.float32
    if not fits or not len(embeds) or count % len(embeds):
        got = f"{embeds.dtype} {embeds.shape}" if is_array else type(embeds).__name__
        shape = ", ".join(["n", "width"][3 - ndim :])
        raise ValueError(f"{name}: expected float32 (1 or {count}, {shape}), got {got}")
    if not np.isfinite(embeds).all():
        raise ValueError(f"{name}: NaN or infinity is in it")
    return np.repeat(embeds, count // len(embeds), axis=0)


def joined(negative: Rows | Encoded, positive: Rows | Encoded) -> tuple[Embeds, np.ndarray | None]:
    """Both below each other, the negative ones first: embeddings, and pooled ones.

    Raises: ValueError: they differ in shape.
    """
    pooled = None
    if negative.pooled is not None and positive.pooled is not None:
        pooled = _stacked(negative.pooled, positive.pooled)
    above, below = negative.embeds, positive.embeds
    assert isinstance(above, np.ndarray)  # for the type checker: only prompts change over steps
    if isinstance(below, _EachStep):
        return _EachStep(below.function, below.count, above), pooled
    assert isinstance(below, np.ndarray)
    return _stacked(above, below), pooled


def _stacked(negative: np.ndarray, positive: np.ndarray) -> np.ndarray:
    if negative.shape[1:] != positive.shape[1:]:
        raise ValueError(
            f"negative_prompt_embeds {negative.shape} and prompt_embeds {positive.shape} "
            "must have rows of one shape"
        )
    return np.concatenate([negative, positive])


def prompts(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Embeds | None,
    num_images_per_prompt: int,
) -> tuple[list[str], list[str]]:
    """Prompt and negative prompt of each picture; empty where embeddings stand for them."""
    checks.whole("num_images_per_prompt", num_images_per_prompt, 1, 100_000)
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("expected either a prompt or prompt_embeds")
    if prompt is None:
        prompts = [""] * (len(prompt_embeds) if isinstance(prompt_embeds, np.ndarray) else 1)
    else:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("expected at least one prompt")
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives = [negative_prompt or ""] * len(prompts)
    else:
        negatives = list(negative_prompt)
    if len(negatives) != len(prompts):
        raise ValueError(f"got {len(prompts)} prompts and {len(negatives)} negative prompts")
    repeat = range(num_images_per_prompt)
    return [p for p in prompts for _ in repeat], [n for n in negatives for _ in repeat]


def begin(steps: int, order: int, strength: float | None, given: Given) -> tuple[int, float | None]:
    """Index of the first step, and the strength that led to it."""
    if given.image is None:
        if strength is not None:
            raise ValueError("strength needs an image to begin from")
        return 0, None
    if strength is None:
        strength = 0.8 if given.mask is None else 1.0
    strength = checks.number("strength", strength, 0, 1)
    kept = min(int(steps * strength), steps)
    if kept < 1:
        raise ValueError(
            f"strength {strength:g} leaves none of {steps} steps; give at least {1 / steps:.3g}"
        )
    return (steps - kept) * order, strength
