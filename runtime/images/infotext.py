"""The settings of an image as AUTOMATIC1111's text, which many programs read.

    prompt
    Negative prompt: negative prompt
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, ...

Settings that AUTOMATIC1111 has are under its names; the others are under their own, "Guidance
interval" for guidance_interval, and only where they are not the default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdexport.runtime.images.parameters import Parameters

RNG = {"cpu": "CPU", "cuda": "NV"}
"""AUTOMATIC1111's names of the noise devices; NV is the CUDA generator, computed on the CPU."""
HASH_DIGITS = 10
"""Digits of a SHA-256 that AUTOMATIC1111 shows."""

_IN_OTHER_LINES = (
    *("prompt", "negative_prompt", "prompts", "negative_prompts", "seeds", "external"),
    *("file", "not_understood"),
)


def infotext(parameters: Parameters) -> str:
    """The settings as text."""
    lines = [_escaped(parameters.prompt)]
    if parameters.negative_prompt:
        lines.append(f"Negative prompt: {_escaped(parameters.negative_prompt)}")
    settings = {**_known(parameters), **_own(parameters), "Version": _version(parameters)}
    shown = (f"{key}: {quoted(value)}" for key, value in settings.items() if value is not None)
    return "\n".join([*lines, ", ".join(shown)])


def _known(p: Parameters) -> dict[str, Any]:
    """The settings that AUTOMATIC1111 has, under its names."""
    batch, cropped = p.batch_size > 1, p.padding_mask_crop is not None
    return {
        "Steps": p.num_inference_steps,
        "Sampler": p.sampler or p.scheduler,
        "Schedule type": p.schedule_type,
        "CFG scale": number(p.guidance_scale),
        "Seed": p.seed,
        "Size": f"{p.width}x{p.height}",
        "Model hash": p.model_hash and p.model_hash[:HASH_DIGITS],
        "Model": p.model,
        "Denoising strength": number(p.strength),
        "Clip skip": p.clip_skip + 1 if p.clip_skip else None,
        "RNG": RNG.get(p.noise_device, p.noise_device),
        "Eta": number(p.eta) if p.eta else None,
        "Batch size": p.batch_size if batch else None,
        "Batch pos": p.batch_index if batch else None,
        "Init image hash": _hashes(p.image),
        "Mask hash": _hashes(p.mask_image),
        "Mask mode": "Inpaint not masked" if p.mask_invert else None,
        "Mask blur": number(p.mask_blur) if p.mask_blur else None,
        **_controlnets(p),
        "Inpaint area": "Only masked" if cropped else None,
        "Masked area padding": p.padding_mask_crop,
    }


_KNOWN_FIELDS = {
    *("num_inference_steps", "scheduler", "schedule", "sampler", "schedule_type"),
    "guidance_scale",
    *("seed", "width", "height"),
    *("model", "model_hash", "strength", "clip_skip", "noise_device", "eta"),
    *("batch_size", "batch_index", "image", "mask_image", "version"),
    *("mask_blur", "mask_invert", "padding_mask_crop", "controlnets"),
}


def _own(parameters: Parameters) -> dict[str, Any]:
    """The settings that AUTOMATIC1111 does not have, where they are not the default."""
    found = {}
    for each in fields(parameters):
        value = getattr(parameters, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name not in (*_KNOWN_FIELDS, *_IN_OTHER_LINES) and value != default:
            exact = each.name == "scheduler_options"  # whose values have types
            found[label(each.name)] = json.dumps(value) if exact else _text(value)
    for name, what in parameters.external.items():
        found[label(name)] = what
    return found


def _controlnets(parameters: Parameters) -> dict[str, str]:
    """The ControlNets as AUTOMATIC1111's extension writes them, each under its number."""
    found = {}
    for number_, net in enumerate(parameters.controlnets or ()):
        values = {
            "Model": f"{net.name} [{net.sha256[:8]}]",
            "Weight": number(net.scale),
            "Guidance Start": number(net.start),
            "Guidance End": number(net.end),
            "Guess Mode": net.guess_mode,
            **({} if net.mode is None else {"Union Control Type": net.mode}),
            "Image hash": _hashes(net.images),
        }
        found[f"ControlNet {number_}"] = ", ".join(f"{k}: {v}" for k, v in values.items())
    return found


def label(name: str) -> str:
    """The name of a setting in the text: "Guidance interval" for "guidance_interval"."""
    return name.replace("_", " ").capitalize()


def number(value: float | None) -> str | None:
    """A number that reads back as the same float; whole numbers without a point."""
    if value is None:
        return None
    return repr(int(value)) if value == int(value) else repr(float(value))


def quoted(value: Any) -> str:
    """A value as AUTOMATIC1111 quotes it: as a JSON string if it has a comma, colon or line break.

    Colons in the string are escaped as JSON allows, because readers that do not know quotes would
    find further settings in it.
    """
    text = str(value)
    if not any(character in text for character in ",:\r\n") and text[:1] != '"':
        return text
    return json.dumps(text, ensure_ascii=False).replace(":", "\\u003a")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        if all(isinstance(entry, (str, int)) for entry in value.values()):
            return " ".join(f"{key}={entry}" for key, entry in value.items())
        return json.dumps(value, ensure_ascii=False)
    return " ".join(_words(value))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, (tuple, list)):
        for entry in value:
            yield from _words(entry)
    elif isinstance(value, float):
        yield str(number(value))
    else:
        yield str(value)


def _escaped(prompt: str) -> str:
    """A prompt in which readers find no other part of the text.

    The space before the colon makes no difference to CLIP's tokens.
    """
    prompt = prompt.replace("Negative prompt:", "Negative prompt :")
    return "\n".join(
        f"Steps :{line[6:]}" if line.startswith("Steps:") else line for line in prompt.split("\n")
    )


def _hashes(images: Any) -> str | None:
    return " ".join(each.sha256[:HASH_DIGITS] for each in images) if images else None


def _version(parameters: Parameters) -> str | None:
    return parameters.version and f"sdexport {parameters.version}"
