"""Checks a request before it waits: names, limits, and what costs nothing to check."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks, prompt_arguments
from sdexport.runtime.call_arguments import reject_unknown
from sdexport.runtime.guidance import Guidance
from sdexport.runtime.noise.image_noise import RANDOM_SEED
from sdexport.runtime.noise.torch_generator import check_seed
from sdexport.runtime.pipeline import call_argument_names
from sdexport.runtime.scheduler_argument import choose_scheduler
from sdexport.runtime.schedulers.create import sampler_of
from sdexport.runtime.text.prompt_styles import style_name
from sdexport.server.model_store import Model
from sdexport.server.registered_names import ADAPTERS, RegisteredNames
from sdexport.server.server_settings import ServerSettings

NOT_IN_REQUESTS = {
    "latents": "arrays are not sent to a server",
    "generator": "give a seed",
    "prompt_embeds": "give a prompt",
    "negative_prompt_embeds": "give a negative_prompt",
    "pooled_prompt_embeds": "give a prompt",
    "negative_pooled_prompt_embeds": "give a negative_prompt",
    "guidance_function": "functions are not sent to a server",
    "on_step": "read the job's events",
    "callback_on_step_end": "read the job's events",
    "callback_on_step_end_tensor_inputs": "read the job's events",
    "output_type": "the server sends image files",
    "return_dict": "the server sends JSON",
}
"""Arguments of a pipeline call that a request does not have, and what to do instead."""
TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
_PAIRS = (
    *("guidance_interval", "cache_interval", "original_size", "crops_coords_top_left"),
    *("target_size", "negative_original_size", "negative_crops_coords_top_left"),
    "negative_target_size",
)
_MOST_ITEMS = 4096
_LARGEST = 100_000
"""Number in a scheduler's configuration, such as training steps, for each of which memory is
taken."""


def argument_names() -> tuple[str, ...]:
    """The arguments of a pipeline call that requests may have."""
    return tuple(name for name in call_argument_names() if name not in NOT_IN_REQUESTS)


def checked_arguments(
    given: Mapping[str, Any], model: Model, names: RegisteredNames, settings: ServerSettings
) -> tuple[dict[str, Any], int]:
    """The arguments of the pipeline call that a request makes, and how many images it generates.

    Raises: InvalidArgumentError: an argument that is unknown, out of range or beyond a limit.
    """
    arguments = {name: value for name, value in given.items() if value is not None}
    for name in arguments:
        if name in NOT_IN_REQUESTS:
            raise InvalidArgumentError(
                f"a request takes no argument {name}: {NOT_IN_REQUESTS[name]}"
            )
    reject_unknown(
        {name: value for name, value in arguments.items() if name not in argument_names()},
        argument_names(),
    )
    for name in _PAIRS:
        if isinstance(arguments.get(name), list):
            arguments[name] = tuple(arguments[name])
    _check_texts(arguments, names, settings)
    count = _count(arguments, settings)
    _check_steps(arguments, model, settings)
    _check_images(arguments, settings)
    arguments |= {
        name: names.adapter_arguments(name, arguments[name])
        for name in ADAPTERS
        if arguments.get(name)
    }
    for each in (*arguments.get("controlnets", ()), *arguments.get("t2i_adapters", ())):
        _check_input_images("a control image", each.image, settings)
    for each in arguments.get("ip_adapters", ()):
        _check_input_images("ip_adapters", each.images, settings)
        _check_input_images("ip_adapters", each.masks, settings)
    pixels = sum(image.width * image.height for image in input_images(arguments))
    if pixels > settings.max_input_pixels:
        raise InvalidArgumentError(
            f"the input images have {pixels:,} pixels; at most {settings.max_input_pixels:,} are "
            "read in a request"
        )
    if arguments.get("loras"):
        arguments["loras"] = names.lora_arguments(arguments["loras"])
    width, height = _check_size(arguments, model, settings)
    if "image" not in arguments:
        arguments |= {"width": width, "height": height}  # so that more jobs run together
    _check_guidance(arguments, model)
    arguments["seed"] = _seeds(arguments.get("seed"), count)
    return arguments, count


def _check_texts(
    arguments: Mapping[str, Any], names: RegisteredNames, settings: ServerSettings
) -> None:
    for name in TEXTS:
        if name not in arguments:
            continue
        texts = checks.strings(name, arguments[name])
        if len(texts) > settings.max_images:
            raise InvalidArgumentError(
                f"{name}: {len(texts)} texts; a request has at most {settings.max_images} images"
            )
        for text in texts:
            if len(text) > settings.max_prompt:
                raise InvalidArgumentError(
                    f"{name}: {len(text):,} characters; at most {settings.max_prompt:,} are read"
                )
        if not name.startswith("negative"):
            names.check_tags(texts)
    style = arguments.get("prompt_style")
    style_name(style, weights=bool(arguments.get("prompt_weights", False)))
    _check_extent("token_embeds", arguments.get("token_embeds"))


def _count(arguments: Mapping[str, Any], settings: ServerSettings) -> int:
    """How many images are generated."""
    repeats = arguments.get("num_images_per_prompt", 1)
    texts = arguments.get("prompt"), arguments.get("negative_prompt")
    checks.integer("num_images_per_prompt", repeats, 1, settings.max_images)
    prompts, _ = prompt_arguments.prompts(*texts, None, None, repeats)
    if len(prompts) > settings.max_images:
        raise InvalidArgumentError(
            f"{len(prompts)} images; a request has at most {settings.max_images}"
        )
    return len(prompts)


def _check_steps(arguments: Mapping[str, Any], model: Model, settings: ServerSettings) -> None:
    most = settings.max_steps
    if "num_inference_steps" in arguments:
        checks.integer("num_inference_steps", arguments["num_inference_steps"], 1, most)
    for name in ("timesteps", "sigmas"):
        values = arguments.get(name)
        if values is not None and (not isinstance(values, (list, tuple)) or len(values) > most):
            raise InvalidArgumentError(f"{name} must be a list of at most {most} numbers")
    if "original_inference_steps" in arguments:
        value = arguments["original_inference_steps"]
        checks.integer("original_inference_steps", value, 1, _LARGEST)
    scheduler = arguments.get("scheduler")
    if scheduler is not None and not isinstance(scheduler, Mapping):
        if not isinstance(scheduler, str):  # a name; no file of the server is read
            raise InvalidArgumentError(f"scheduler must be a name, got {shown(scheduler)}")
        sampler_of(scheduler)
    _check_extent("scheduler", scheduler)
    _check_extent("scheduler_options", arguments.get("scheduler_options"))
    choose_scheduler(
        scheduler,
        model.package.scheduler_config,
        schedule=arguments.get("schedule"),
        options=arguments.get("scheduler_options"),
        tables=model.package.family.schedules,
    )


def _check_extent(name: str, value: Any) -> None:
    """Raises: InvalidArgumentError: a number or list for which much memory would be taken."""
    if isinstance(value, (Mapping, list, tuple)):
        if len(value) > _MOST_ITEMS:
            raise InvalidArgumentError(f"{name}: at most {_MOST_ITEMS} entries are read")
        for each in value.values() if isinstance(value, Mapping) else value:
            _check_extent(name, each)
    elif isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
        raise InvalidArgumentError(f"{name}: numbers are at most {_LARGEST:,}, got {shown(value)}")


def _check_images(arguments: Mapping[str, Any], settings: ServerSettings) -> None:
    for name in ("image", "mask_image"):
        _check_input_images(name, arguments.get(name), settings)
    if "mask_blur" in arguments:
        checks.number("mask_blur", arguments["mask_blur"], 0, 1024)


def _check_input_images(name: str, images: Any, settings: ServerSettings) -> None:
    """Raises: InvalidArgumentError: no Pillow images, such as paths; or too large ones."""
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    if images is None:
        return
    if len(several) > settings.max_images:
        raise InvalidArgumentError(f"{name}: at most {settings.max_images} images in a request")
    for image in several:
        if not isinstance(image, Image.Image):
            raise InvalidArgumentError(f"{name}: expected an image, got {shown(image)}")
        if image.width * image.height > settings.max_input_pixels:
            raise InvalidArgumentError(
                f"{name}: {image.width}x{image.height} pixels; at most "
                f"{settings.max_input_pixels:,} are read"
            )


def input_images(arguments: Mapping[str, Any]) -> list[Image.Image]:
    """All images that a request brings."""
    found: list[Any] = [arguments.get("image"), arguments.get("mask_image")]
    for argument in ADAPTERS:
        for each in arguments.get(argument) or ():
            found += [getattr(each, name, None) for name in ("image", "images", "masks")]
    listed = [each if isinstance(each, (list, tuple)) else [each] for each in found]
    return [image for images in listed for image in images if isinstance(image, Image.Image)]


def adapter_folders(arguments: Mapping[str, Any]) -> list[Path]:
    """The packages of the adapters of a request, each once."""
    items = [each for argument in ADAPTERS for each in arguments.get(argument) or ()]
    return list(dict.fromkeys(each.package for each in items))


def requested_size(arguments: Mapping[str, Any], model: Model) -> tuple[int, int]:
    """Width and height of the images in pixels; see the arguments of a call."""
    unit = model.package.manifest.downscale
    height, width = model.package.manifest.default_size
    source = arguments.get("image") if arguments.get("padding_mask_crop") is None else None
    if source is None and arguments.get("image") is None:
        following = (*arguments.get("controlnets", ()), *arguments.get("t2i_adapters", ()))
        source = following[0].image if following else None
    if isinstance(source, (list, tuple)):
        source = source[0] if source else None
    if isinstance(source, Image.Image):
        width, height = (max(side // unit, 1) * unit for side in source.size)
    return arguments.get("width", width), arguments.get("height", height)


def output_size(arguments: Mapping[str, Any], model: Model) -> tuple[int, int]:
    """Width and height of the results: of the image into which they are pasted, if there is one."""
    pasted = arguments.get("paste_back") or arguments.get("padding_mask_crop") is not None
    if pasted and arguments.get("mask_image") is not None:
        for image in input_images({"image": arguments.get("image")}):
            return image.size
    return requested_size(arguments, model)


def _check_size(
    arguments: Mapping[str, Any], model: Model, settings: ServerSettings
) -> tuple[int, int]:
    """Width and height of the images, within the limits."""
    unit = model.package.manifest.downscale
    width, height = requested_size(arguments, model)
    if arguments.get("paste_back") or arguments.get("padding_mask_crop") is not None:
        for image in input_images({"image": arguments.get("image")}):
            if image.width * image.height > settings.max_pixels:
                raise InvalidArgumentError(
                    f"image: the result has its size, {image.width}x{image.height}; the limit is "
                    f"{settings.max_pixels:,} pixels (--max-pixels)"
                )
    for name, side in (("width", width), ("height", height)):
        if checks.integer(name, side, unit, settings.max_side) % unit:
            raise InvalidArgumentError(f"{name} must be a multiple of {unit}, got {side}")
    if width * height > settings.max_pixels:
        raise InvalidArgumentError(
            f"{width}x{height} are {width * height:,} pixels; the limit is "
            f"{settings.max_pixels:,} (--max-pixels)"
        )
    return width, height


def _check_guidance(arguments: Mapping[str, Any], model: Model) -> None:
    task = {"image": "image" in arguments, "mask": "mask_image" in arguments}
    model.package.family.check_task(**task)
    given = (
        arguments.get("guidance_scale", 1.0),
        arguments.get("guidance_rescale", 0.0),
        arguments.get("guidance_interval", (0.0, 1.0)),
    )
    Guidance(*given)
    if "strength" in arguments:
        checks.number("strength", arguments["strength"], 0, 1)


def _seeds(seed: Any, count: int) -> int | list[int]:
    """Seeds as numbers, so that jobs can be generated again: one, or one for each image."""
    if seed is None:
        first = secrets.randbits(32)
        return first if count == 1 else [(first + i) % 2**32 for i in range(count)]
    if isinstance(seed, (list, tuple)):
        if len(seed) != count:
            raise InvalidArgumentError(f"got {len(seed)} seeds for {count} images")
        found = [_seed(each) for each in seed]
        return found[0] if count == 1 else found
    return _seed(seed)


def _seed(seed: Any) -> int:
    number = check_seed(seed)
    return secrets.randbits(32) if number == RANDOM_SEED % 2**64 else number


def texts_of(arguments: Mapping[str, Any], name: str) -> Sequence[str]:
    """The texts of an argument: of each prompt."""
    value = arguments.get(name)
    return () if value is None else [value] if isinstance(value, str) else list(value)


def public_text(text: str, folders: Mapping[str, str]) -> str:
    """A message without the folders of the server.

    Args:
      folders: each folder, as it was given -> what a message calls it.
    """
    for folder, name in sorted(folders.items(), key=lambda item: -len(item[0])):
        for form in (str(Path(folder).resolve()), folder):
            end = r"(?![\w.-])" if Path(form).is_absolute() else r"(?=[/\\])"
            found = rf"(?<![\w./\\-]){re.escape(form)}{end}"
            text = name.join(re.split(found, text))
    return text
