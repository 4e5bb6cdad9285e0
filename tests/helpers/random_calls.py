"""Random pipeline calls, by number: the same number is always the same call."""

from __future__ import annotations

import inspect
import random
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
from PIL import Image

from sdexport.runtime import schedulers
from tests.helpers.diffusers_schedulers import twin_class
from tests.helpers.scheduler_cases import EDM_NAMES, OPTIONS, SPACED, WITHOUT_SMALLEST_ALPHA, grid

PROMPTS = (
    "a small yellow star on a blue background",
    "a large red circle, très joli",
    "",
    "two green squares",
)
NEGATIVES = ("a red circle", "", "grey, blurry")
TASKS_OF = {
    "sd1": ("text", "image", "inpaint"),
    "sd2-v": ("text", "image", "inpaint"),
    "lcm": ("text", "image", "inpaint"),
    "inpainting": ("inpaint",),
    "sdxl": ("text", "image", "inpaint"),
    "sdxl-inpainting": ("inpaint",),
    "refiner": ("image", "inpaint"),
}
"""What the checkpoints of tests.helpers.families are used for."""
STRENGTHS = (0.2, 0.3, 0.5, 0.75, 0.8, 0.999, 1.0)
SIZES = (64, 72, 88, 104)
LCM_SCHEDULERS = ("lcm",)


@dataclass(frozen=True)
class RandomCall:
    """A call of a pipeline, ours or diffusers'.

    scheduler: its short name. config: keys that differ from the checkpoint's scheduler. seeds: of
    one generator, or of one for each image. arguments: those of diffusers' pipeline that stand in
    the text; images are made from numbers. callback: what is done at the end of which step.
    """

    number: int
    family: str
    task: str
    scheduler: str
    config: dict[str, Any]
    seeds: int | list[int]
    arguments: dict[str, Any]
    images: list[tuple[int, int, int]] = field(default_factory=list)
    mask: tuple[int, int, int] | None = None
    callback: tuple[str, int] | None = None

    def __str__(self) -> str:
        parts = [f"{k}={v!r}" for k, v in self.arguments.items()]
        if self.images:
            parts.append(f"images={self.images}")
        if self.mask:
            parts.append(f"mask={self.mask}")
        if self.callback:
            parts.append(f"callback={self.callback}")
        keys = ", ".join(f"{k}={v!r}" for k, v in self.config.items())
        return (
            f"call {self.number}: {self.family} {self.task}, {self.scheduler}({keys}), "
            f"seeds={self.seeds}, {', '.join(parts)}"
        )

    def image_arguments(self) -> dict[str, Any]:
        """image and mask_image as Pillow images."""
        found: dict[str, Any] = {}
        if self.images:
            made = [picture(*each) for each in self.images]
            found["image"] = made if len(made) > 1 else made[0]
        if self.mask:
            found["mask_image"] = mask(*self.mask)
        return found

    def callback_arguments(self) -> dict[str, Any]:
        """callback_on_step_end, for tensors and arrays alike, and the names of its arrays."""
        if self.callback is None:
            return {}
        action, at = self.callback
        names = ["latents"]
        if action == "unguided":
            names = ["prompt_embeds"]
            if pipeline_class(self.family, self.task).__name__.startswith("StableDiffusionXL"):
                names += ["add_text_embeds", "add_time_ids"]
            names += ["mask"] if self.mask else []
            names += ["masked_image_latents"] if "inpainting" in self.family else []

        def callback(pipeline: Any, i: int, timestep: Any, arrays: Any) -> Any:
            if i != at:
                return arrays
            if action == "interrupt":
                pipeline._interrupt = True
            elif action == "latents":
                arrays["latents"] = arrays["latents"] * 0.8 + 0.1
            else:
                pipeline._guidance_scale = 0.0
                arrays = {name: array[len(array) // 2 :] for name, array in arrays.items()}
            return arrays

        return {
            "callback_on_step_end": callback,
            "callback_on_step_end_tensor_inputs": names,
        }


def picture(seed: int, width: int, height: int) -> Image.Image:
    """A smooth picture of random colours."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def mask(seed: int, width: int, height: int) -> Image.Image:
    """A random box, one side of which is soft, on black."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width), np.float32)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    bottom, right = rng.integers(height // 2, height), rng.integers(width // 2, width)
    pixels[top : bottom + 1, left : right + 1] = 255
    pixels[top : top + 4] *= 0.6
    return Image.fromarray(pixels.astype(np.uint8))


def random_call(number: int, seed: int = 18) -> RandomCall:
    """The call of a number, 0 or more."""

    def stream(part: str) -> random.Random:
        """Of its own for each part, so that a new scheduler changes nothing else."""
        return random.Random(f"{seed}:{number}:{part}")

    rng = stream("call")
    pairs = [(family, task) for family, tasks in TASKS_OF.items() for task in tasks]
    family, task = pairs[number % len(pairs)]
    pipeline = pipeline_class(family, task)
    known = inspect.signature(pipeline.__call__).parameters
    scheduler, config, given = _scheduler(stream("scheduler"), family, task)
    prompts = rng.randint(1, 3)
    each = rng.choice((1, 1, 2))
    arguments: dict[str, Any] = {
        **_texts(stream("texts"), family, prompts, known),
        **_steps(stream("steps"), scheduler, given, known),
        **_guidance(stream("guidance"), known),
    }
    if family == "lcm" and task == "inpaint":  # where our defaults are those of LCM
        arguments.setdefault("guidance_scale", 4.0)
    images: list[tuple[int, int, int]] = []
    masked = None
    if task != "text":
        count = prompts if each == 1 and rng.random() < 0.3 else 1
        size = rng.randint(64, 110), rng.randint(64, 110)
        images = [(rng.randrange(1000), *size) for _ in range(count)]
        steps = arguments.get("num_inference_steps", 5)
        enough = [each for each in STRENGTHS if each * steps >= 1]
        arguments["strength"] = rng.choice(enough if rng.random() < 0.97 else STRENGTHS)
    if task != "image":
        arguments |= {"height": rng.choice(SIZES), "width": rng.choice(SIZES)}
    if task == "inpaint":
        size = images[0][1:] if rng.random() < 0.7 else (rng.randint(64, 110), 80)
        masked = (rng.randrange(1000), *size)
    if each > 1:
        arguments["num_images_per_prompt"] = each
    if "denoising_end" in known:
        arguments |= _ensemble(stream("ensemble"), task, arguments)
        if "denoising_start" in arguments:
            del arguments["strength"]  # diffusers ignores it
        arguments |= _sizes(stream("sizes"), known)
        if task == "text" and prompts * each > 1:
            arguments.pop("negative_target_size", None)  # see test_random_parity.py
    seeds: int | list[int] = rng.randrange(2**34)
    one_image_inpainting = task == "inpaint" and len(images) < prompts * each
    if rng.random() < 0.4 and not one_image_inpainting and scheduler != "dpmsolver_sde":
        seeds = [rng.randrange(2**34) for _ in range(prompts * each)]
    callback = _callback(stream("callback"), family, arguments)
    return RandomCall(
        number, family, task, scheduler, config, seeds, arguments, images, masked, callback
    )


def pipeline_class(family: str, task: str) -> Any:
    suffix = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}[task]
    if family == "lcm" and task != "inpaint":
        return getattr(diffusers, f"LatentConsistencyModel{suffix}Pipeline")
    xl = family.startswith("sdxl") or family == "refiner"
    return getattr(diffusers, f"StableDiffusion{'XL' if xl else ''}{suffix}Pipeline")


def _scheduler(
    rng: random.Random, family: str, task: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A scheduler with a configuration, and its options for the call."""
    names = [
        n for n in schedulers.NAMES if n in OPTIONS and n not in EDM_NAMES and "inverse" not in n
    ]
    name = rng.choice(LCM_SCHEDULERS if family == "lcm" and task != "inpaint" else names)
    config, options = rng.choice(grid(name, full=False))
    keys = {k: v for k, v in config.items() if not k.startswith("beta_") or rng.random() < 0.2}
    keys["prediction_type"] = "v_prediction" if family == "sd2-v" else "epsilon"
    if "rescale_betas_zero_snr" in keys and name in WITHOUT_SMALLEST_ALPHA:
        keys["prediction_type"] = "v_prediction"
    if name in SPACED:
        keys.pop("timestep_spacing", None)
    if rng.random() < 0.4:  # as the checkpoint has it
        kept = ("prediction_type",)
        return name, {k: v for k, v in keys.items() if k in kept}, {}
    return name, keys, options


def _steps(
    rng: random.Random, scheduler: str, options: dict[str, Any], known: Any
) -> dict[str, Any]:
    found: dict[str, Any] = {"num_inference_steps": rng.randint(1, 7)}
    accepted = inspect.signature(twin_class(scheduler).set_timesteps).parameters
    for name in ("timesteps", "sigmas"):
        if name in options and name in accepted and name in known:
            return {name: list(options[name])}
    if "eta" in options and "eta" in known:
        found["eta"] = options["eta"]
    elif scheduler == "ddim" and "eta" in known and rng.random() < 0.5:
        found["eta"] = rng.choice((0.3, 1.0))
    if "original_inference_steps" in known and rng.random() < 0.4:
        found["original_inference_steps"] = rng.choice((20, 50, 100))
    return found


def _texts(rng: random.Random, family: str, prompts: int, known: Any) -> dict[str, Any]:
    texts = [rng.choice(PROMPTS) for _ in range(prompts)]
    found: dict[str, Any] = {"prompt": texts if prompts > 1 else texts[0]}
    if "negative_prompt" in known and rng.random() < 0.6:
        own = [rng.choice(NEGATIVES) for _ in range(prompts)]
        found["negative_prompt"] = own if prompts > 1 else own[0]
    if "prompt_2" in known and family != "refiner" and rng.random() < 0.4:
        own = [rng.choice(PROMPTS) for _ in range(prompts)]
        found["prompt_2"] = own if prompts > 1 else own[0]
        if "negative_prompt" in found and rng.random() < 0.5:
            own = [rng.choice(NEGATIVES) for _ in range(prompts)]
            found["negative_prompt_2"] = own if prompts > 1 else own[0]
    if rng.random() < 0.3:
        found["clip_skip"] = rng.choice((1, 0))
    return found


def _guidance(rng: random.Random, known: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rng.random() < 0.8:
        found["guidance_scale"] = rng.choice((0.0, 1.0, 1.5, 3.0, 5.0, 7.5, 11.0))
    if "guidance_rescale" in known and rng.random() < 0.3:
        found["guidance_rescale"] = rng.choice((0.3, 0.7, 1.0))
    return found


def _ensemble(rng: random.Random, task: str, arguments: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    steps = arguments.get("num_inference_steps", 5)
    if rng.random() < 0.3 and steps >= 3 and arguments.get("strength", 1.0) >= 0.8:
        found["denoising_end"] = rng.choice((0.6, 0.8))
    if task != "text" and rng.random() < 0.25:
        found["denoising_start"] = rng.choice((0.3, 0.5) if steps >= 4 else (0.3,))
        found.pop("denoising_end", None) if rng.random() < 0.7 else None
    return found


def _callback(rng: random.Random, family: str, arguments: dict[str, Any]) -> tuple[str, int] | None:
    """What a callback does after which of the first steps."""
    if rng.random() < 0.75:
        return None
    actions = ["latents"]
    if family != "lcm":
        actions.append("interrupt")
        if arguments.get("guidance_scale", 5.0) > 1:
            actions.append("unguided")
    return rng.choice(actions), rng.randint(0, 2)


def _sizes(rng: random.Random, known: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in known:
        if name.endswith("_size") and rng.random() < 0.2:
            found[name] = (rng.choice(SIZES), rng.choice(SIZES))
        elif "crops_coords" in name and rng.random() < 0.2:
            found[name] = (rng.randint(0, 30), rng.randint(0, 30))
        elif name.endswith("aesthetic_score") and rng.random() < 0.2:
            found[name] = rng.choice((2.0, 7.5))
    return found
