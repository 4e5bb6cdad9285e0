"""Reading AUTOMATIC1111's text, which many programs write, each a little different.

The grammar is that of AUTOMATIC1111's own reader: the last line holds "name: value" pairs, values
with a comma, colon or line break are JSON strings, and "Negative prompt:" begins a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sdexport.runtime.images.infotext import HASH_DIGITS, RNG, label
from sdexport.runtime.schedulers.sampler_names import from_automatic1111

_PAIR = re.compile(r'\s{0,8}(\w[\w \-/]{0,63}):\s{0,8}("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_FEWEST_PAIRS = 3
"""Of a last line that holds settings, and is no part of a prompt."""
_LONGEST = 64 * 1024
"""Characters of a last line that is searched for settings; what is longer has none."""
_OWN = "sdexport "
_NEGATIVE = "Negative prompt:"


def read_infotext(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of Parameters in a text, and what is not understood.

    Raises: ValueError: there are no settings in it.
    """
    lines, pairs = _lines_and_pairs(text)
    if len(pairs) < _FEWEST_PAIRS:
        raise ValueError("no line with steps, sampler and seed")
    found = _prompts(lines)
    own = pairs.get("Version", "").startswith(_OWN)
    if not own:
        pairs.setdefault(
            "RNG", "GPU" if re.match(r"[vf]?\d|$", pairs.get("Version", "")) else "CPU"
        )
        found["prompt_style"] = "automatic1111"
    rest: dict[str, str] = {}
    sampler = from_automatic1111(pairs.get("Sampler", ""), pairs.get("Schedule type"))
    if sampler is None:
        rest = {key: pairs[key] for key in ("Sampler", "Schedule type") if key in pairs}
    else:
        found |= {"scheduler": sampler.name, "schedule": sampler.schedule}
    for key, value in pairs.items():
        try:
            found |= _READERS[key](value) if key in _READERS else _own_setting(key, value, own=own)
        except (ValueError, TypeError):
            rest[key] = value
    if not own:
        _move_what_means_something_else(found, rest, pairs)
    return found, rest


def settings_pairs(text: str) -> dict[str, str]:
    """Every setting in a text under its name there, as AUTOMATIC1111's png-info names them.

    Returns: "Prompt" and "Negative prompt" too, and the size as "Size-1" and "Size-2"; nothing of a
      text without settings.
    """
    lines, pairs = _lines_and_pairs(text)
    if len(pairs) < _FEWEST_PAIRS:
        return {}
    prompts = _prompts(lines)
    found = {
        "Prompt": prompts["prompt"],
        "Negative prompt": prompts.get("negative_prompt", ""),
        **pairs,
    }
    size = re.fullmatch(r"(\d+)x(\d+)", pairs.get("Size", ""))
    return found | ({"Size-1": size[1], "Size-2": size[2]} if size else {})


def _lines_and_pairs(text: str) -> tuple[list[str], dict[str, str]]:
    """The lines of the prompts, and the settings in the last line."""
    *lines, last = text.strip("\n").split("\n")
    if len(last) > _LONGEST:
        return lines, {}
    return lines, {key.strip(): _unquoted(value.strip()) for key, value in _PAIR.findall(last)}


def _move_what_means_something_else(
    found: dict[str, Any], rest: dict[str, str], pairs: dict[str, str]
) -> None:
    """AUTOMATIC1111's settings that have our name under other circumstances only."""
    moved = []
    if any(key.startswith("Hires") for key in pairs):
        moved.append(("strength", "Denoising strength"))  # of the second pass
    if str(found.get("scheduler", "")).split("_")[0] not in ("ddim", "tcd"):
        moved.append(("eta", "Eta"))  # of ancestral samplers
    for name, key in moved:
        if found.pop(name, None) is not None:
            rest[key] = pairs[key]


def _prompts(lines: list[str]) -> dict[str, Any]:
    """The prompt and the negative prompt, which begins in a line of its own."""
    starts = [i for i, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)]
    if not starts:
        return {"prompt": "\n".join(lines)}
    first = starts[0]
    negative = [lines[first].strip()[len(_NEGATIVE) :].removeprefix(" "), *lines[first + 1 :]]
    return {"prompt": "\n".join(lines[:first]), "negative_prompt": "\n".join(negative)}


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except (ValueError, RecursionError):
            return value
    return value


def _size(text: str) -> dict[str, Any]:
    width, height = map(int, text.split("x"))
    return {"width": width, "height": height}


def _rng(text: str) -> dict[str, Any]:
    devices = {name: device for device, name in RNG.items()} | {"GPU": "cuda"}
    if text.upper() not in devices:
        raise ValueError
    return {"noise_device": devices[text.upper()]}


def _images(text: str) -> tuple[dict[str, str], ...]:
    digests = text.split()
    if any(not re.fullmatch(rf"[0-9a-f]{{{HASH_DIGITS}}}", digest) for digest in digests):
        raise ValueError
    return tuple({"sha256": digest} for digest in digests)


def _single(name: str, convert: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: convert(text)}


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": _single("num_inference_steps", int),
    "Sampler": _single("sampler", str),
    "Schedule type": _single("schedule_type", str),
    "CFG scale": _single("guidance_scale", float),
    "Seed": _single("seed", int),
    "Size": _size,
    "Model hash": _single("model_hash", str),
    "Model": _single("model", str),
    "Denoising strength": _single("strength", float),
    "Clip skip": _single("clip_skip", lambda text: max(int(text) - 1, 0)),
    "RNG": _rng,
    "Eta": _single("eta", float),
    "Batch size": _single("batch_size", int),
    "Batch pos": _single("batch_index", int),
    "Init image hash": _single("image", _images),
    "Mask hash": _single("mask_image", _images),
    "Version": _single("version", lambda text: text.removeprefix(_OWN)),
}


def _own_setting(key: str, value: str, *, own: bool) -> dict[str, Any]:
    """A setting under its own name, in a text that sdexport wrote.

    Raises: ValueError: unknown, or of a type that the text does not hold exactly.
    """
    from sdexport.runtime.images.parameters import Parameters

    defaults = {label(each.name): (each.name, each.default) for each in fields(Parameters)}
    if not own or key not in defaults:
        raise ValueError
    name, default = defaults[key]
    if isinstance(default, bool):
        return {name: value == "True"}
    if isinstance(default, (int, float)):
        return {name: type(default)(value)}
    if isinstance(default, str) or name == "prompt_style":
        return {name: value}
    if name in ("vae_tile", "max_batch"):
        return {name: int(value)}
    if isinstance(default, tuple) or name in _NUMBERS:
        return {name: tuple(map(_number, value.split()))}
    if name == "scheduler_options":
        return {name: json.loads(value)}
    if name in ("backend", "precision"):
        parts = dict(part.split("=", 1) for part in value.split()) if " " in value else value
        return {name: parts}
    raise ValueError


_NUMBERS = ("timesteps", "sigmas", "cache_interval", "original_size", "target_size")


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
