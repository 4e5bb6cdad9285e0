"""What a call of the pipeline is given, checked and brought into arrays."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.images.loading import ImageInput, load_image, load_mask, resize
from sdexport.runtime.images.pixels import to_sample
from sdexport.runtime.noise.torch_generator import TorchGenerator, check_seed
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.text.conditioning import Embeds

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


@dataclass(frozen=True)
class Course:
    """The steps that pictures take.

    name: the scheduler's. begin: index of the first of its timesteps that is run. strength: what
    led to that; None without a picture to begin from.
    """

    name: str
    scheduler: Scheduler
    num_inference_steps: int
    begin: int
    strength: float | None


def given(
    source: ImageInput | Sequence[ImageInput] | None,
    mask: ImageInput | None,
    height: int | None,
    width: int | None,
    resize_mode: str,
    default_size: tuple[int, int],
    unit: int,
    count: int,
) -> Given:
    """Pictures and mask at the size that will be painted.

    Args:
      height, width: multiples of `unit`; default those of the first picture, rounded down, or
        else default_size, (height, width).
      count: how many will be painted; a multiple of the pictures.
    Raises: ValueError: sizes or pictures that cannot be. FileNotFoundError: no such picture.
    """
    if source is None and mask is not None:
        raise ValueError("mask_image needs an image to be painted into")
    sources: list[Any] = list(source) if isinstance(source, (list, tuple)) else [source]
    opened = [load_image(each) for each in sources] if source is not None else []
    if source is not None and not opened:
        raise ValueError("image: expected at least one picture")
    if opened and count % len(opened):
        raise ValueError(f"got {len(opened)} images for {count} pictures")
    if opened:
        default_size = (
            max(opened[0].height // unit, 1) * unit,
            max(opened[0].width // unit, 1) * unit,
        )
    size = (
        _side("width", default_size[1] if width is None else width, unit),
        _side("height", default_size[0] if height is None else height, unit),
    )
    samples = [to_sample(resize(picture, *size, resize_mode)) for picture in opened]
    return Given(
        *size,
        image=np.concatenate(samples) if samples else None,
        mask=None if mask is None else load_mask(mask, *size, resize_mode),
    )


def _side(name: str, value: int, unit: int) -> int:
    try:
        side = checks.integer(name, value, unit, MAX_SIDE)
    except ValueError:
        side = -1
    if side % unit:
        raise ValueError(
            f"{name} must be a multiple of {unit} from {unit} to {MAX_SIDE}, got {shown(value)}"
        )
    return side


class Noise:
    """Noise for all pictures: from one generator, or from one for each of them.

    Args:
      seed: one for all, or a list with one for each; None draws one for each.
    Raises: ValueError: no seed, or not one for each.
    """

    def __init__(
        self, seed: int | Sequence[int] | np.ndarray | None, count: int, device: str
    ) -> None:
        if seed is None:
            first = secrets.randbits(32)
            seed = [(first + i) % 2**32 for i in range(count)]
        one = isinstance(seed, str) or not isinstance(seed, (Sequence, np.ndarray))
        seeds = [seed] * count if one or not np.ndim(seed) else list(seed)  # type: ignore[arg-type]
        if len(seeds) != count:
            raise ValueError(f"got {len(seeds)} seeds for {count} pictures")
        self.seeds = [check_seed(number) for number in seeds]  # type: ignore[arg-type]
        self.each = not one
        self._generators = [
            TorchGenerator(n, device) for n in self.seeds[: None if self.each else 1]
        ]

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal float32; with a generator for each picture, shape[0] is their number."""
        if not self.each:
            return self._generators[0].randn(shape)
        return np.concatenate([g.randn((1, *shape[1:])) for g in self._generators])


def prompts(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Embeds | None,
    negative_prompt_embeds: np.ndarray | None,
    num_images_per_prompt: int,
) -> tuple[list[str], list[str]]:
    """Prompt and negative prompt of each picture; empty where embeddings stand for them."""
    checks.integer("num_images_per_prompt", num_images_per_prompt, 1, 100_000)
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("expected either a prompt or prompt_embeds")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("expected either a negative_prompt or negative_prompt_embeds")
    if prompt is not None:
        prompts = checks.strings("prompt", prompt)
    elif callable(prompt_embeds):
        prompts = [""]
    else:
        prompts = [""] * len(checks.float_array("prompt_embeds", prompt_embeds, (None, None, None)))
    if not prompts:
        raise ValueError("expected at least one prompt")
    negatives = checks.strings(
        "negative_prompt", "" if negative_prompt is None else negative_prompt
    )
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise ValueError(f"got {len(prompts)} prompts and {len(negatives)} negative prompts")
    repeat = range(num_images_per_prompt)
    return [p for p in prompts for _ in repeat], [n for n in negatives for _ in repeat]


def begin(
    steps: int, scheduler: Scheduler, strength: float | None, given: Given
) -> tuple[int, float | None]:
    """Index of the first of the scheduler's timesteps, and the strength that led to it."""
    if given.image is None:
        if strength is not None:
            raise ValueError("strength needs an image to begin from")
        return 0, None
    strength = checks.number("strength", strength, 0, 1)
    kept = min(int(steps * strength), steps)
    if kept < 1:
        raise ValueError(
            f"strength {strength:g} leaves none of {steps} steps; give at least {1 / steps:.3g}"
        )
    return (steps - kept) * scheduler.order, strength
