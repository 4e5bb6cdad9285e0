"""The fields of AUTOMATIC1111's txt2img and img2img: checked, so that none is ignored silently.

A field is used, has no effect here whatever its value is, or must have a value without effect.

Source: modules/api/models.py and modules/processing.py of AUTOMATIC1111's web UI 1.10.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown

_NUMBER = (int, float)
_FLAG = (bool, int)
_TEXT_OR_NONE = (str, type(None))
_NUMBER_OR_NONE = (int, float, type(None))

COMMON: Mapping[str, tuple[tuple[type, ...], Any]] = {
    "prompt": ((str,), ""),
    "negative_prompt": ((str,), ""),
    "styles": ((list, type(None)), []),
    "seed": ((int,), -1),
    "subseed": ((int,), -1),
    "subseed_strength": (_NUMBER, 0),
    "sampler_name": (_TEXT_OR_NONE, None),
    "sampler_index": (_TEXT_OR_NONE, "Euler"),
    "scheduler": (_TEXT_OR_NONE, None),
    "batch_size": ((int,), 1),
    "n_iter": ((int,), 1),
    "steps": ((int,), 50),
    "cfg_scale": (_NUMBER, 7.0),
    "width": ((int,), 512),
    "height": ((int,), 512),
    "eta": (_NUMBER_OR_NONE, None),
    "s_churn": (_NUMBER_OR_NONE, None),
    "s_tmax": (_NUMBER_OR_NONE, None),
    "s_tmin": (_NUMBER_OR_NONE, None),
    "s_noise": (_NUMBER_OR_NONE, None),
    "override_settings": ((dict, type(None)), {}),
    "override_settings_restore_afterwards": (_FLAG, True),
    "alwayson_scripts": ((dict, type(None)), {}),
    "send_images": (_FLAG, True),
}
"""Field -> the types that it may have, and its default."""

IMAGES: Mapping[str, tuple[tuple[type, ...], Any]] = {
    "init_images": ((list, type(None)), None),
    "mask": (_TEXT_OR_NONE, None),
    "resize_mode": ((int,), 0),
    "denoising_strength": (_NUMBER, 0.75),
    "mask_blur": (_NUMBER_OR_NONE, None),
    "mask_blur_x": (_NUMBER, 4),
    "mask_blur_y": (_NUMBER, 4),
    "mask_round": (_FLAG, True),
    "inpainting_fill": ((int,), 0),
    "inpaint_full_res": (_FLAG, True),
    "inpaint_full_res_padding": ((int,), 0),
    "inpainting_mask_invert": (_FLAG, 0),
    "include_init_images": (_FLAG, False),
}
"""The same for the fields that only img2img has."""

_OFF = (None, False, 0)
_NAMELESS = (None, "", "None")
WITHOUT_EFFECT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "enable_hr": (_OFF, "hires fix is not supported"),
    "restore_faces": (_OFF, "face restoration is not supported"),
    "tiling": (_OFF, "tileable images are not supported"),
    "save_images": (_OFF, "images are not saved on the server; they are in the response"),
    "seed_resize_from_h": ((*_OFF, -1), "resizing from a seed is not supported"),
    "seed_resize_from_w": ((*_OFF, -1), "resizing from a seed is not supported"),
    "s_min_uncond": (_OFF, "use override_settings without it; skipping guidance is not supported"),
    "script_name": (_NAMELESS, "scripts are not supported"),
    "refiner_checkpoint": (_NAMELESS, "switching to a refiner is not supported"),
    "disable_extra_networks": (_OFF, "leave the LoRAs out of the prompt instead"),
    "infotext": (_NAMELESS, "send its settings as fields"),
    "firstpass_image": (_NAMELESS, "hires fix is not supported"),
    "latent_mask": (_NAMELESS, "give mask"),
    "initial_noise_multiplier": ((None, 1), "other noise is not supported"),
    "sampler_noise_scheduler_override": ((None,), "choose a scheduler by name"),
    "token_merging_ratio": (_OFF, "token merging is not supported"),
    "token_merging_ratio_hr": (_OFF, "token merging is not supported"),
}
"""Field -> the values that change nothing, and what to do instead of another one."""

HIRES = "hr_"
"""What the fields of hires fix begin with, which is off."""
IGNORED = (
    *("firstphase_width", "firstphase_height"),  # of hires fix
    *("script_args", "refiner_switch_at"),  # of a script or a refiner, which there is none of
    *("do_not_save_samples", "do_not_save_grid", "force_task_id", "comments"),
    *("image_cfg_scale", "denoising_strength"),  # of InstructPix2Pix; of hires fix
)
"""Fields that never have an effect here: what they belong to is off, or about files and tasks."""


def checked_fields(body: object, *, image: bool) -> dict[str, Any]:
    """The fields that are used, with the defaults of those that are missing.

    Args:
      body: of the request. image: whether it is for img2img.
    Raises: InvalidArgumentError: no object, an unknown field, a value of another type, or one that
      would change the image and is not supported.
    """
    if not isinstance(body, dict):
        raise InvalidArgumentError(f"the body must be a JSON object, got {shown(body)}")
    used = {**COMMON, **IMAGES} if image else COMMON
    found = {name: default for name, (_, default) in used.items()}
    for name, value in body.items():
        if name in used:
            types, default = used[name]
            found[name] = default if value is None else _typed(name, value, types)
        elif name in WITHOUT_EFFECT:
            _check_without_effect(name, value)
        elif name not in IGNORED and not name.startswith(HIRES):
            raise InvalidArgumentError(_unknown(name, (*used, *WITHOUT_EFFECT, *IGNORED)))
    _check_values(found)
    return found


def _typed(name: str, value: Any, types: tuple[type, ...]) -> Any:
    """A value, if it has one of the types; a whole float counts as an integer.

    Raises: InvalidArgumentError: it has not.
    """
    if isinstance(value, float) and float not in types and value.is_integer():
        value = int(value)
    if isinstance(value, bool) and bool not in types:
        raise InvalidArgumentError(f"{name} must be {_names(types)}, got {shown(value)}")
    if not isinstance(value, types):
        raise InvalidArgumentError(f"{name} must be {_names(types)}, got {shown(value)}")
    if types == _FLAG and value not in (0, 1):
        raise InvalidArgumentError(f"{name} must be true or false, got {shown(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidArgumentError(f"{name} must fit into 64 bits, got {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgumentError(f"{name} must be a finite number, got {value}")
    return value


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_WORDS |= {list: "a list", dict: "an object"}


def _names(types: tuple[type, ...]) -> str:
    if bool in types:
        return _WORDS[bool]
    return _WORDS[float if float in types else types[0]]


def _check_without_effect(name: str, value: Any) -> None:
    values, instead = WITHOUT_EFFECT[name]
    if value not in values:
        raise InvalidArgumentError(f"{name}: {shown(value)} has no effect here: {instead}")


def _check_values(found: Mapping[str, Any]) -> None:
    """Raises: InvalidArgumentError: values of fields that are used in part only."""
    for name in ("batch_size", "n_iter"):
        if found[name] < 1:
            raise InvalidArgumentError(f"{name} must be 1 or more, got {found[name]}")
    for name in ("seed", "subseed"):
        if found[name] < -1:  # the seeds of a batch count up, and -1 is a random one
            raise InvalidArgumentError(f"{name} must be -1 or more, got {shown(found[name])}")
    if found["subseed_strength"]:
        raise InvalidArgumentError(
            "subseed_strength: variations of a seed are not supported; leave it at 0"
        )
    named = [style for style in found["styles"] or () if style not in _NAMELESS]
    if named:
        raise InvalidArgumentError(
            f"styles: there is no style {shown(named[0])}; this server has none"
        )


def _unknown(name: str, known: tuple[str, ...]) -> str:
    similar = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    return f"unknown field {shown(name)}{hint}"
