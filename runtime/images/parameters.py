"""The settings of an image: every one that changes it, exact, and as JSON.

An argument of `Pipeline.__call__` that changes the image is a field here of the same name and
default; its value is then recorded, written to image files and read back. NOT_RECORDED lists the
other arguments, each with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints

from sdexport.runtime.images.infotext import infotext
from sdexport.runtime.images.recorded_values import (
    InputImage,
    RecordedControlNet,
    RecordedIPAdapter,
    RecordedLora,
    RecordedT2IAdapter,
    convert,
    identity,
    plain,
)
from sdexport.runtime.version import __version__

NOT_RECORDED = {
    "on_step": "is called with copies, which change nothing",
    "num_images_per_prompt": "recorded as batch_size and prompts",
    "callback_on_step_end_tensor_inputs": "says what callback_on_step_end gets",
    "output_type": "says what the result holds",
    "return_dict": "says what the result is",
}
"""Arguments of a pipeline call that are no field of `Parameters`, and why."""

EFFECTIVE = (
    *("prompt", "negative_prompt", "num_inference_steps", "scheduler", "guidance_scale"),
    *("seed", "width", "height", "strength"),
)
"""Fields that hold what an argument came to, such as a default of the package."""
INPUT_IMAGES = ("image", "mask_image")
INPUT_FILES = (*INPUT_IMAGES, "loras", "controlnets", "t2i_adapters", "ip_adapters")
"""Fields that name files, of which only digests are recorded."""
OF_BATCH = ("batch_size", "batch_index", "prompts", "negative_prompts", "seeds")
OF_PIPELINE = (
    *("vae_tile", "max_batch", "model", "model_hash", "backend", "precision", "options"),
    *("engines", "sampler", "schedule_type", "version", "external"),
)
OF_FILES = ("file", "not_understood")
"""Fields that are no arguments of a call: see the attributes of Parameters."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The settings that an image was generated with.

    Fields that are arguments of a pipeline call have its names, and are described there.

    Attributes:
      negative_prompt: None if there was none, which is not the same as "" for SDXL.
      seed: of this image, or of the whole batch; None if the image depends on no seed, because the
        latents were an argument, or because its generator had been used before.
      width, height: in pixels.
      strength: 0..1; None without an input image.
      image, mask_image: what identifies the input images; empty if nothing does.
      batch_size, batch_index: number of images of the call, and the image's place among them, from
        0. The same bytes come only from the same batch.
      prompts, negative_prompts, seeds: those of the whole batch; None where all images have the
        same prompt, or one seed.
      loras: the name, digest and scale of each LoRA that was used.
      controlnets, t2i_adapters, ip_adapters: the package, images and settings of each one that was
        used.
      external: arguments that a text cannot hold, such as latents: what identifies them.
      model: name of the package's folder. model_hash: digest of its manifest; None without one.
      backend, precision: for all components, or by component.
      options: of the backends' sessions.
      sampler, schedule_type: AUTOMATIC1111's names for what the scheduler does.
      engines: components that ran an engine or graph that was built before, for this image.
      version: of sdexport.
      file: how the file was written: "format", "quality", "lossless" and "mark" of save_image.
      not_understood: settings in the file that are none of these, by their name there.

    A generated image has every setting; one that another program wrote may lack some.
    """

    prompt: str
    negative_prompt: str | None = None
    prompt_2: str | tuple[str, ...] | None = None
    negative_prompt_2: str | tuple[str, ...] | None = None
    num_inference_steps: int | None = None
    scheduler: str | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    original_inference_steps: int | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_function: None = None
    cache_interval: tuple[float, float] | None = None
    image: tuple[InputImage, ...] | None = None
    strength: float | None = None
    mask_image: tuple[InputImage, ...] | None = None
    mask_blur: float = 0.0
    mask_invert: bool = False
    paste_back: bool = False
    padding_mask_crop: int | None = None
    resize_mode: str = "stretch"
    generator: None = None
    noise_device: str = "cpu"
    latents: None = None
    prompt_embeds: None = None
    negative_prompt_embeds: None = None
    pooled_prompt_embeds: None = None
    negative_pooled_prompt_embeds: None = None
    prompt_style: str | None = None
    prompt_weights: bool = False
    clip_skip: int = 0
    token_embeds: Mapping[str, Any] | None = None
    loras: tuple[RecordedLora, ...] | None = None
    controlnets: tuple[RecordedControlNet, ...] | None = None
    t2i_adapters: tuple[RecordedT2IAdapter, ...] | None = None
    ip_adapters: tuple[RecordedIPAdapter, ...] | None = None
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] = (0, 0)
    negative_target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    schedule: str | None = None
    scheduler_options: Mapping[str, Any] | None = None
    eta: float = 0.0
    safety: bool = False
    callback_on_step_end: None = None
    batch_size: int = 1
    batch_index: int = 0
    prompts: tuple[str, ...] | None = None
    negative_prompts: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    external: Mapping[str, str] = field(default_factory=dict)
    vae_tile: int | None = None
    max_batch: int | None = None
    model: str | None = None
    model_hash: str | None = None
    backend: str | Mapping[str, str] | None = None
    precision: str | Mapping[str, str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    engines: tuple[str, ...] = ()
    sampler: str | None = None
    schedule_type: str | None = None
    version: str | None = __version__
    file: Mapping[str, Any] | None = None
    not_understood: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The text that AUTOMATIC1111 writes into image files; see infotext.py."""
        return infotext(self)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON can hold them, without those of the file."""
        return {key: value for key, value in asdict(self).items() if key not in OF_FILES}

    def to_json(self) -> str:
        """All settings as one line of JSON in ASCII; numbers read back as they were."""
        return json.dumps(self.to_dict())

    def arguments(self) -> dict[str, Any]:
        """The arguments of a pipeline call that generates the image, as `batch_index` of its batch.

        Those that text cannot hold, `external`, the input images and the adapters, are missing.
        """
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            is_argument = each.name not in (*OF_PIPELINE, *OF_BATCH, *OF_FILES, *INPUT_FILES)
            if is_argument and value is not None and value != each.default:
                found[each.name] = value
        for name in ("prompt", "negative_prompt", "seed"):
            if name in found:
                found[name] = self.of_batch(name)
        if "prompt_embeds" in self.external:
            del found["prompt"]
        return found

    def of_batch(self, name: str, value: Any = None) -> Any:
        """An argument with a value for each image of the batch; as such if there is one image.

        Args:
          name: prompt, negative_prompt or seed.
          value: of this image, instead of the recorded one.
        """
        own, each = getattr(self, name), getattr(self, f"{name}s")
        value = own if value is None else value
        if self.batch_size == 1 or (name == "seed" and each is None):
            return value
        values = list(each or [value if own is None else own] * self.batch_size)
        values[self.batch_index] = value
        return values

    def pipeline_arguments(self) -> dict[str, Any]:
        """The arguments of `load_pipeline` that the image was generated with."""
        found = {"backend": self.backend, "vae_tile": self.vae_tile, "max_batch": self.max_batch}
        return {k: v for k, v in found.items() if v is not None} | dict(self.options)


def recorded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Parameters that are arguments of a call, from the call's arguments.

    Arguments that differ from the default and that a text cannot hold are in `external`.

    Args:
      arguments: by name; those in NOT_RECORDED and EFFECTIVE, images and adapters are left out.
    """
    found: dict[str, Any] = {}
    external: dict[str, str] = {}
    for each in fields(Parameters):
        name = each.name
        if name not in arguments or name in (*EFFECTIVE, *INPUT_FILES):
            continue
        try:
            found[name] = plain(arguments[name])
        except TypeError:
            external[name] = identity(arguments[name])
            continue
        with suppress(TypeError):  # so that 2 is 2.0 where it is read back as that
            found[name] = convert(found[name], TYPES[name])
    return found | {"external": external}


TYPES = get_type_hints(Parameters)
"""Field -> its type."""
