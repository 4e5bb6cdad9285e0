"""What a call of the pipeline is given, checked and brought into arrays."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime import checks
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

    def draw_rows(self, count: int, shape: Sequence[int]) -> np.ndarray:
        """For so many given images; with a generator for each picture, for all of those."""
        return self.draw((count, *shape))


class EachStep:
    """Embeddings that change over the steps, joined with the negative ones."""

    def __init__(
        self,
        positive: Callable[[int, int], np.ndarray],
        negative: np.ndarray | None,
        count: int,
    ) -> None:
        self._positive, self._negative, self._count = positive, negative, count
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, i: int, steps: int) -> np.ndarray:
        """The same object as long as the function gives the same one."""
        given = self._positive(i, steps)
        if self._last is None or self._last[0] is not given:
            own = rows("prompt_embeds", given, self._count)
            whole = own if self._negative is None else joined(self._negative, own)
            self._last = given, whole
        return self._last[1]


def rows(name: str, embeds: np.ndarray, count: int) -> np.ndarray:
    """Embeddings as one row for each picture."""
    fits = isinstance(embeds, np.ndarray) and embeds.ndim == 3 and embeds.dtype == np.float32
    if not fits or not len(embeds) or count % len(embeds):
        got = f"{embeds.dtype} {embeds.shape}" if isinstance(embeds, np.ndarray) else type(embeds)
        raise ValueError(f"{name}: expected float32 (1 or {count}, n, width), got {got}")
    if not np.isfinite(embeds).all():
        raise ValueError(f"{name}: NaN or infinity is in it")
    return np.repeat(embeds, count // len(embeds), axis=0)


def joined(negative: np.ndarray, positive: np.ndarray) -> np.ndarray:
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
