"""Random arguments of a pipeline call, of a pipeline, and of an image file."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdexport.runtime import schedulers
from sdexport.runtime.noise.torch_generator import TorchGenerator
from sdexport.runtime.schedulers.sampler_names import display_names
from sdexport.runtime.text.prompt_styles import STYLES

PROMPTS = (
    "a small yellow star on a blue background",
    "a (red:1.3) circle, [blue], 'quoted' \"twice\" {a|b} \\(no\\)",
    "two\nlines, with: colons\r\nand 🔴 très joli ß",
    "Negative prompt: not really\nSteps: 3, Sampler: x, Seed: 9, Size: 1x1",
    "",
    "long " * 90 + "star",
)
PIPELINES: tuple[dict[str, Any], ...] = (
    {},
    {"vae_tile": 64, "max_batch": 1},
    {"backend": {"unet": "openvino", "*": "onnxruntime"}},
)
FILES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("png", {}),
    ("png", {"mark": False}),
    ("jpg", {}),
    ("jpg", {"quality": 60}),
    ("webp", {"quality": 95}),
    ("webp", {"lossless": True, "mark": False}),
)
OPTIONS = (
    ("use_karras_sigmas", True),
    ("timestep_spacing", "trailing"),
    ("solver_order", 1),
    ("final_sigmas_type", "sigma_min"),
    ("beta_start", 0.001),
)
"""Keys of a scheduler's configuration."""
Choice = Callable[[random.Random], Any]


def _interval(rng: random.Random) -> tuple[float, float]:
    start, end = sorted((rng.random(), rng.random()))
    return start, end


def _size(rng: random.Random) -> tuple[int, int]:
    return rng.choice((64, 512, 1024)), rng.choice((64, 768, 1024))


CHOICES: dict[str, tuple[float, Choice]] = {
    "negative_prompt": (0.6, lambda rng: rng.choice(PROMPTS)),
    "prompt_2": (0.15, lambda rng: rng.choice(PROMPTS)),
    "negative_prompt_2": (0.1, lambda rng: rng.choice(PROMPTS)),
    "num_inference_steps": (0.95, lambda rng: rng.randint(1, 4)),
    "scheduler": (0.7, lambda rng: rng.choice((*schedulers.NAMES, *display_names()))),
    "schedule": (
        0.2,
        lambda rng: rng.choice(("karras", "exponential", "beta", "simple", "trailing")),
    ),
    "scheduler_options": (0.15, lambda rng: dict([rng.choice(OPTIONS)])),
    "guidance_scale": (0.8, lambda rng: rng.choice((0, 1, 7, rng.random() * 12))),
    "width": (0.5, lambda rng: rng.choice((64, 72))),
    "height": (0.5, lambda rng: rng.choice((64, 80))),
    "strength": (0.5, lambda rng: rng.choice((0.4, 1.0, rng.random()))),
    "timesteps": (0.05, lambda rng: [900, 500.5, 100]),
    "sigmas": (0.05, lambda rng: [12.5, 1 / 3, 0.1]),
    "original_inference_steps": (0.05, lambda rng: 40),
    "denoising_start": (0.05, lambda rng: 0.5),
    "denoising_end": (0.1, lambda rng: 0.8),
    "guidance_rescale": (0.2, lambda rng: rng.random()),
    "guidance_interval": (0.2, _interval),
    "cache_interval": (0.2, _interval),
    "mask_blur": (0.3, lambda rng: rng.choice((2, 3.5))),
    "mask_invert": (0.3, lambda rng: True),
    "paste_back": (0.3, lambda rng: True),
    "padding_mask_crop": (0.2, lambda rng: rng.choice((0, 8))),
    "resize_mode": (0.3, lambda rng: rng.choice(("stretch", "crop", "fill"))),
    "noise_device": (0.3, lambda rng: "cuda"),
    "prompt_weights": (0.3, lambda rng: True),
    "prompt_style": (0.2, lambda rng: rng.choice(STYLES)),
    "clip_skip": (0.2, lambda rng: rng.choice((0, 1))),
    "token_embeds": (0.1, lambda rng: {"star": {"star": 0.3, "circle": 0.7}}),
    "original_size": (0.2, _size),
    "crops_coords_top_left": (0.1, lambda rng: (rng.randint(0, 9), 3)),
    "target_size": (0.1, _size),
    "negative_original_size": (0.1, _size),
    "negative_crops_coords_top_left": (0.1, lambda rng: (1, 2)),
    "negative_target_size": (0.1, _size),
    "aesthetic_score": (0.1, lambda rng: rng.random() * 10),
    "negative_aesthetic_score": (0.1, lambda rng: rng.random() * 10),
    "eta": (0.15, lambda rng: rng.random()),
}
"""Argument -> how often it is given, and its value."""
ELSEWHERE = {
    *("prompt", "seed", "generator", "num_images_per_prompt", "image", "mask_image"),
    *("latents", "prompt_embeds", "negative_prompt_embeds"),
    *("pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    *("guidance_function", "callback_on_step_end", "loras", "controlnets"),
    *("t2i_adapters", "ip_adapters", "safety"),
}
"""Arguments that `random_call` makes itself, and those that have to be given again."""


def write_inputs(folder: Path) -> None:
    """Images and masks to start from, in files."""
    rng = np.random.default_rng(3)
    for name, size in (("photo", (64, 64)), ("other", (96, 80))):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:, :40] = 255
    Image.fromarray(mask).save(folder / "mask.png")


def random_call(rng: random.Random, folder: Path, *, image: bool, mask: bool) -> dict[str, Any]:
    """Arguments of a pipeline call; some fit no family or contradict each other.

    Args:
      folder: with the files of `write_inputs`.
      image, mask: whether the family needs them.
    """
    found = {name: make(rng) for name, (often, make) in CHOICES.items() if rng.random() < often}
    found["prompt"] = rng.choice(PROMPTS)
    count = rng.choice((1, 1, 1, 2, 3))
    if count > 1 and rng.random() < 0.5:
        found["prompt"] = [rng.choice(PROMPTS) for _ in range(count)]
    elif count > 1:
        found["num_images_per_prompt"] = count
    seeds = [rng.randrange(2**32) for _ in range(count)]
    found["seed"] = rng.choice((seeds[0], seeds, None))
    if rng.random() < 0.1:
        found["generator"] = TorchGenerator(seeds[0], found.pop("noise_device", "cpu"))
        del found["seed"]
    if image or rng.random() < 0.3:
        found["image"] = folder / f"{rng.choice(('photo', 'photo', 'other'))}.png"
        if mask or rng.random() < 0.3:
            found["mask_image"] = folder / "mask.png"
    return found
