"""The arguments of a pipeline call, checked and turned into arrays."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.images.loading import ImageInput, load_image, load_mask, resize
from sdexport.runtime.images.pixels import to_sample
from sdexport.runtime.noise.torch_generator import TorchGenerator, check_seed
from sdexport.runtime.text.prompt_embeds import Embeds

MAX_SIDE = 16384
"""Largest height and width in pixels."""


@dataclass(frozen=True)
class ImageInputs:
    """The size to generate, in pixels, and the images to start from.

    image: (n, 3, height, width) float32 in -1..1. mask: (1, 1, height, width) float32, 0 or 1.
    """

    width: int
    height: int
    image: np.ndarray | None = None
    mask: np.ndarray | None = None


def image_inputs(
    image: ImageInput | Sequence[ImageInput] | None,
    mask: ImageInput | None,
    height: int | None,
    width: int | None,
    resize_mode: str,
    *,
    default_size: tuple[int, int],
    unit: int,
    count: int,
) -> ImageInputs:
    """Open images and mask and bring them to the size that is generated.

    Args:
      height, width: pixels, multiples of `unit`; default the first image's size rounded down, or
        without an image `default_size`, (height, width).
      count: images to generate; a multiple of the number of input images.
    Raises: InvalidArgumentError: sizes or images that do not fit. FileNotFoundError: no such image.
    """
    if image is None and mask is not None:
        raise InvalidArgumentError("mask_image needs an image")
    sources: list[Any] = list(image) if isinstance(image, (list, tuple)) else [image]
    opened = [load_image(source) for source in sources] if image is not None else []
    if image is not None and not opened:
        raise InvalidArgumentError("image: expected at least one image")
    if opened and count % len(opened):
        raise InvalidArgumentError(f"got {len(opened)} input images to generate {count} images")
    if opened:
        default_size = (
            max(opened[0].height // unit, 1) * unit,
            max(opened[0].width // unit, 1) * unit,
        )
    size = (
        _side("width", default_size[1] if width is None else width, unit),
        _side("height", default_size[0] if height is None else height, unit),
    )
    samples = [to_sample(resize(each, *size, resize_mode)) for each in opened]
    return ImageInputs(
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
        raise InvalidArgumentError(
            f"{name} must be a multiple of {unit} from {unit} to {MAX_SIDE}, got {shown(value)}"
        )
    return side


class Noise:
    """The noise of a batch: from one generator, or from one for each image.

    Args:
      seed: one for the whole batch, or a list with one for each image; None draws random seeds.
      device: "cpu" or "cuda": whose torch generator is reproduced.
    Raises: InvalidArgumentError: not a seed, or not one for each image.
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
            raise InvalidArgumentError(f"got {len(seeds)} seeds for {count} images")
        self.seeds = [check_seed(number) for number in seeds]  # type: ignore[arg-type]
        self.per_image = not one
        self.was_drawn = False
        self._generators = [
            TorchGenerator(n, device) for n in self.seeds[: None if self.per_image else 1]
        ]

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal float32; with a generator for each image, shape[0] is their number."""
        self.was_drawn = True
        if not self.per_image:
            return self._generators[0].randn(shape)
        return np.concatenate([g.randn((1, *shape[1:])) for g in self._generators])


def prompts(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Embeds | None,
    negative_prompt_embeds: np.ndarray | None,
    num_images_per_prompt: int,
) -> tuple[list[str], list[str]]:
    """Prompt and negative prompt of each image; "" where embeddings replace them.

    Raises: InvalidArgumentError: none or both of prompt and embeddings; numbers that do not match.
    """
    checks.integer("num_images_per_prompt", num_images_per_prompt, 1, 100_000)
    if (prompt is None) == (prompt_embeds is None):
        raise InvalidArgumentError("expected either a prompt or prompt_embeds")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise InvalidArgumentError("expected either a negative_prompt or negative_prompt_embeds")
    if prompt is not None:
        prompts = checks.strings("prompt", prompt)
    elif callable(prompt_embeds):
        prompts = [""]
    else:
        prompts = [""] * len(checks.float_array("prompt_embeds", prompt_embeds, (None, None, None)))
    if not prompts:
        raise InvalidArgumentError("expected at least one prompt")
    negatives = checks.strings(
        "negative_prompt", "" if negative_prompt is None else negative_prompt
    )
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise InvalidArgumentError(
            f"got {len(prompts)} prompts and {len(negatives)} negative prompts"
        )
    repeat = range(num_images_per_prompt)
    return [p for p in prompts for _ in repeat], [n for n in negatives for _ in repeat]
