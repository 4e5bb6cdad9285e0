"""Units of the web UI's ControlNet extension as ControlNets of a pipeline call.

Source: the extension's internal_controlnet/external_code.py and web API page.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.images.resizing import resize
from sdexport.runtime.models.control_types import type_number
from sdexport.server.input_images import RequestImages, decoded_image
from sdexport.server.registered_names import check_number

NAME = "controlnet"
_NONE = (None, "", "None", "none")
_OFF: tuple[Any, ...] = (None, False, 0, "", "None", "none", -1, [])
_MODES = {
    **dict.fromkeys(("Balanced", 0), False),
    **dict.fromkeys(("ControlNet is more important", 2), True),
}
"""control_mode -> whether it is guess mode, which the last one was called before."""
_RESIZE = {
    **dict.fromkeys(("Just Resize", 0), "stretch"),
    **dict.fromkeys(("Crop and Resize", "Inner Fit (Scale to Fit)", 1), "crop"),
    **dict.fromkeys(("Resize and Fill", "Outer Fit (Shrink to Fit)", 2), "fill"),
}
"""resize_mode, also of older versions -> what it is called here."""
_UNION_TYPES = ("OpenPose", "Depth", "Soft Edge", "Hard Edge", "Normal Map", "Segmentation")
"""union_control_type of a ControlNet-Union, in the order of the numbers of its types."""
_UNKNOWN_TYPE = "Unknown"
_USED = (
    *("enabled", "image", "input_image", "model", "weight", "guidance_start", "guidance_end"),
    *("control_mode", "resize_mode", "module", "union_control_type"),
)
_IGNORED = (
    *("low_vram", "lowvram", "processor_res", "threshold_a", "threshold_b", "pixel_perfect"),
    *("hr_option", "save_detected_map", "inpaint_crop_input_image"),
)
"""Of preprocessors, of hires fix and about memory: without effect, since there are none."""
_ADDRESS = re.compile(r"\s*\[[0-9a-f]{4,64}\]\Z")


def units(scripts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ControlNet units in `alwayson_scripts` that are enabled.

    Raises: InvalidArgumentError: another script that would have an effect; a unit of another form.
    """
    found: list[Mapping[str, Any]] = []
    for name, script in scripts.items():
        arguments = script.get("args", []) if isinstance(script, Mapping) else script
        if not isinstance(arguments, (list, tuple)):
            raise InvalidArgumentError(f"alwayson_scripts: {shown(name)} must have a list args")
        if name.lower() == NAME:
            found += [_unit(unit) for unit in arguments if _is_enabled(unit)]
        elif not _is_off(arguments):
            raise InvalidArgumentError(
                f"alwayson_scripts: {shown(name)} is not supported; only ControlNet is"
            )
    return found


def controlnet_arguments(
    units: Sequence[Mapping[str, Any]],
    known: Mapping[str, int],
    size: tuple[int, int],
    reader: RequestImages,
    *,
    image: Image.Image | None = None,
    cropped: bool = False,
) -> list[dict[str, Any]]:
    """The argument `controlnets`, with the names of the server.

    Args:
      known: the server's ControlNets, by name how many types of control images each knows; see
        RegisteredNames. size: (width, height) of the images.
      reader: decodes the control images.
      image: that img2img starts from, which a unit without an image follows.
      cropped: whether only a part of the image is generated, to which control images are cropped.
    Raises: InvalidArgumentError: too many units, a setting that is not supported, no image, or one
      that cannot be read. QueueFullError: see RequestImages.read.
    """
    check_number("ControlNet: units", units)
    return [_argument(unit, known, size, reader, image=image, cropped=cropped) for unit in units]


def _argument(
    unit: Mapping[str, Any],
    known: Mapping[str, int],
    size: tuple[int, int],
    reader: RequestImages,
    *,
    image: Image.Image | None,
    cropped: bool,
) -> dict[str, Any]:
    name = _name(unit.get("model"), known)  # before an image is decoded
    source = unit.get("image") or unit.get("input_image")
    if isinstance(source, Mapping):  # with a mask, as the page sends it
        if source.get("mask") not in _NONE:
            raise InvalidArgumentError("ControlNet: a mask of a unit is not supported")
        source = source.get("image")
    control = decoded_image(source, "ControlNet: image", reader) if source else image
    if control is None:
        raise InvalidArgumentError("ControlNet: a unit needs an image")
    mode = unit.get("resize_mode", 1)
    if not isinstance(mode, (str, int)) or mode not in _RESIZE:
        raise InvalidArgumentError(f"ControlNet: resize_mode {shown(mode)} is unknown")
    guess = unit.get("control_mode", 0)
    if not isinstance(guess, (str, int)) or guess not in _MODES:
        raise InvalidArgumentError(
            f"ControlNet: control_mode {shown(guess)} is not supported; use Balanced or ControlNet "
            "is more important"
        )
    found: dict[str, Any] = {
        "name": name,
        "image": control if cropped else resize(control, *size, _RESIZE[mode]),
        "scale": unit.get("weight", 1.0),
        "start": unit.get("guidance_start", 0.0),
        "end": unit.get("guidance_end", 1.0),
    }
    found |= {"guess_mode": True} if _MODES[guess] else {}
    mode = _union_mode(unit.get("union_control_type"), known[name], name)
    return found if mode is None else {**found, "mode": mode}


def _union_mode(kind: Any, types: int, name: str) -> int | None:
    """The argument `mode` of a ControlNet-Union; None for others, whose type has no effect.

    Args:
      types: how many the network has; 0 if it is no ControlNet-Union.
    Raises: InvalidArgumentError: no type, or one that it does not have.
    """
    if not types:
        return None
    if kind in (None, "", _UNKNOWN_TYPE):
        raise InvalidArgumentError(
            f"ControlNet: {name} is a ControlNet-Union; send union_control_type, one of "
            f"{', '.join(_UNION_TYPES)}"
        )
    wanted = str(kind).strip()
    for number, each in enumerate(_UNION_TYPES[:types]):
        if wanted.casefold() == each.casefold():
            return number
    return type_number(wanted, types, f"ControlNet: {name}")


def _name(model: Any, known: Collection[str]) -> str:
    """The server's name of a ControlNet, which may be followed by a hash.

    Raises: InvalidArgumentError: there is none.
    """
    name = _ADDRESS.sub("", model) if isinstance(model, str) else ""
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise InvalidArgumentError(
            f"ControlNet: unknown model {shown(model)}; the server has {listed}"
        )
    return name


def _is_enabled(unit: Any) -> bool:
    """Raises: InvalidArgumentError: no object."""
    if unit is None or isinstance(unit, bool):
        return False
    if not isinstance(unit, Mapping):
        raise InvalidArgumentError(f"ControlNet: a unit must be an object, got {shown(unit)}")
    return bool(unit.get("enabled", True))


def _is_off(arguments: Sequence[Any]) -> bool:
    """Whether the first argument of a script, which is usually its switch, says that it is off."""
    if not arguments:
        return True
    first = arguments[0]
    if isinstance(first, Mapping):
        first = first.get("enabled", first.get("enable", True))
    return first is None or first is False or first in (0, "")


def _unit(unit: Mapping[str, Any]) -> Mapping[str, Any]:
    """A unit, if every setting in it is known or off.

    Raises: InvalidArgumentError: it is not.
    """
    for name, value in unit.items():
        if name in (*_USED, *_IGNORED):
            continue
        if value not in _OFF:
            raise InvalidArgumentError(f"ControlNet: {shown(name)} is not supported")
    if unit.get("module") not in _NONE:
        raise InvalidArgumentError(
            f"ControlNet: preprocessor {shown(unit['module'])} is not supported; send a control "
            "image and module none, see the functions of sdexport.preprocessors"
        )
    return unit
