"""The result of a pipeline call: images, their settings and timings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from sdexport.runtime.images.input_digest import identify
from sdexport.runtime.images.metadata import to_image
from sdexport.runtime.images.parameters import Parameters, recorded
from sdexport.runtime.inputs import ImageInputs
from sdexport.runtime.noise.image_noise import ImageNoise
from sdexport.runtime.schedulers.sampler_names import find_sampler, to_automatic1111
from sdexport.runtime.timestep_plan import TimestepPlan

STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class Result:
    """The result of a pipeline call.

    Attributes:
      images: Pillow images in RGB, each with its settings as text in `info["parameters"]`; with
        output_type "np" (B, H, W, 3) float32 in 0..1, with "latent" the latents.
      latents: (B, C, H/8, W/8) float32, from which the images were decoded.
      parameters: the settings of each image.
      seconds: the time of each stage: encode, denoise, decode.
      nsfw_content_detected: for each image whether the safety checker flagged it, and it is black;
        None if images were not checked.
    Example:
        >>> import sdexport
        >>> with sdexport.load_pipeline("package") as pipe:
        ...     result = pipe(["a red circle", "a blue star"], seed=0, num_inference_steps=4)
        >>> len(result.images), result.images[0].size, result.parameters[1].prompt
        (2, (128, 128), 'a blue star')
        >>> list(result.seconds)
        ['encode', 'denoise', 'decode']
    """

    images: Any
    latents: np.ndarray
    parameters: list[Parameters]
    seconds: Mapping[str, float]
    nsfw_content_detected: list[bool] | None = None

    @classmethod
    def from_decoded(
        cls,
        decoded: np.ndarray | list[np.ndarray],
        latents: np.ndarray,
        parameters: list[Parameters],
        clock: Sequence[float],
        nsfw_content_detected: list[bool] | None = None,
    ) -> Self:
        """Make a result.

        Args:
          decoded: (B, H, W, 3) uint8, or a list of (H, W, 3), of which Pillow images are made; what
            has another dtype is taken as it is.
          latents: (B, C, H/8, W/8) float32.
          clock: the time in seconds before the first stage and after each stage.
          nsfw_content_detected: see Result.
        """
        images: Any = decoded
        if decoded[0].dtype == np.uint8:
            images = [to_image(p, q) for p, q in zip(decoded, parameters, strict=True)]
        seconds = dict(zip(STAGES, np.diff(clock).tolist(), strict=True))
        return cls(images, latents, parameters, seconds, nsfw_content_detected)

    def __repr__(self) -> str:
        first = self.parameters[0]
        seeds = [p.seed for p in self.parameters]
        same = len(set(seeds)) == 1
        shown = f"seed {seeds[0]}" if same else f"seeds {', '.join(map(str, seeds[:4]))}"
        count = len(self.parameters)
        return (
            f"<Result: {count} image{'s'[: count > 1]} of {first.width}x{first.height}, "
            f"{shown}{', ...' if not same and count > 4 else ''}, "
            f"{first.num_inference_steps} steps, {sum(self.seconds.values()):.1f} s>"
        )

    def only(self, index: int) -> Self:
        """The result of one image of the batch."""
        detected = self.nsfw_content_detected
        return replace(
            self,
            images=self.images[index : index + 1],
            latents=self.latents[index : index + 1],
            parameters=self.parameters[index : index + 1],
            nsfw_content_detected=detected and detected[index : index + 1],
        )


def image_parameters(
    arguments: Mapping[str, Any],
    prompts: Sequence[str],
    negatives: Sequence[str],
    images: ImageInputs,
    plan: TimestepPlan,
    noise: ImageNoise,
    guidance_scale: float,
    settings: Mapping[str, Any],
) -> list[Parameters]:
    """The settings of each image of a batch.

    Args:
      arguments: all arguments of the pipeline call, by name.
      guidance_scale: the effective one.
      settings: those of the pipeline, and what identifies the package; see `Pipeline.settings`.
    """
    count = len(prompts)
    known = [seed for seed in noise.seeds if seed is not None]
    if len(known) == count:  # the seeds stand for the generators
        arguments = {**arguments, "generator": None, "noise_device": noise.device}
    chosen = {"schedule": plan.schedule, "scheduler_options": plan.scheduler_options}
    batch = recorded({**arguments, **chosen}) | {
        **_second_prompts(arguments),
        "num_inference_steps": plan.num_inference_steps,
        "scheduler": plan.name,
        **_automatic1111_names(plan),
        "guidance_scale": float(guidance_scale),
        "width": images.width,
        "height": images.height,
        "image": identify(arguments["image"]),
        "strength": plan.strength,
        "mask_image": identify(arguments["mask_image"]),
        "batch_size": count,
        "prompts": _if_different(prompts),
        "seeds": tuple(known) if noise.per_image and len(known) == count > 1 else None,
    }
    has_negative = arguments["negative_prompt"] is not None
    if has_negative:
        batch["negative_prompts"] = _if_different(negatives)
    seeded = noise.was_drawn or arguments["seed"] is not None
    return [
        Parameters(
            **(batch | dict(settings)),
            prompt=prompts[i],
            negative_prompt=negatives[i] if has_negative else None,
            seed=noise.seeds[i] if seeded else None,
            batch_index=i,
        )
        for i in range(count)
    ]


def _automatic1111_names(plan: TimestepPlan) -> dict[str, str]:
    found = find_sampler(plan.name)
    if found is None:
        return {}
    sampler, schedule = to_automatic1111(found.name, vars(plan.scheduler.config), plan.schedule)
    return {"sampler": sampler, "schedule_type": schedule}


def _second_prompts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of the second text encoder; where they are a list, one for each image."""
    found: dict[str, Any] = {}
    for name in ("prompt_2", "negative_prompt_2"):
        texts = arguments[name]
        if texts is not None and not isinstance(texts, str):
            repeats = range(arguments["num_images_per_prompt"])
            texts = tuple(text for text in texts for _ in repeats)
        found[name] = texts
    return found


def _if_different(texts: Sequence[str]) -> tuple[str, ...] | None:
    return tuple(texts) if len(set(texts)) > 1 else None
