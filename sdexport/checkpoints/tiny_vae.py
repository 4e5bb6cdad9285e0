"""TAESD, the small VAE, in the files of its author, of ComfyUI and of diffusers.

The author's layout numbers the layers of encoder and decoder, and counts the decoder's clamp as its
first one; diffusers does not count it. Source: madebyollin/taesd.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sdexport.checkpoints.state_dicts import Tensors

CLASS_NAME = "AutoencoderTiny"
SIDES = ("encoder", "decoder")
WITHOUT_EFFECT = frozenset({"vae_scale", "vae_shift"})
"""ComfyUI's own scaling of the latents, which the denoiser's latents do not need here."""
_LAYER = re.compile(
    r"(?:(?:taesd_)?(?P<side>encoder|decoder)\.)?(?P<layers>layers\.)?(?P<number>\d{1,4})\.(?P<rest>"
    r"(?:(?:conv\.\d|skip)\.)?(?:weight|bias))"
)


def tiny_names(names: Iterable[str]) -> dict[str, str]:
    """The names of diffusers by the names in the file, for those that are layers of a TAESD."""
    matches = {name: match for name in names if (match := _LAYER.fullmatch(name))}
    bare = {m["number"] for m in matches.values() if not m["side"]}
    alone = SIDES["0" not in bare]  # a file of one side: the decoder's layer 0 has no weights
    found = {}
    for name, match in matches.items():
        side = match["side"] or alone
        number = int(match["number"])
        if side == "decoder" and not match["layers"]:
            number -= 1
        found[name] = f"{side}.layers.{number}.{match['rest']}"
    return found


def sides_of(names: Iterable[str]) -> set[str]:
    """Which of encoder and decoder a file holds, if most of it is a TAESD; else nothing."""
    listed = list(names)
    found = tiny_names(listed)
    if 2 * len(found) < len(listed):
        return set()
    return {name.partition(".")[0] for name in found.values()}


def with_side(tensors: Tensors, side: str) -> dict[str, torch.Tensor]:
    """The weights of a file of one side by names that say which; others keep theirs."""
    return {f"taesd_{side}.{k}" if k[:1].isdigit() else k: tensors[k] for k in tensors}


def tiny_state(tensors: Tensors) -> Tensors:
    """The weights under diffusers' names."""
    return {new: tensors[old] for old, new in tiny_names(tensors).items()}


def tiny_config(tensors: Tensors) -> Mapping[str, Any]:
    """The configuration of a TAESD, from the shapes of its weights by diffusers' names."""
    config: dict[str, Any] = {"_class_name": CLASS_NAME, "scaling_factor": 1.0}
    for side in SIDES:
        numbers = sorted({int(n.split(".")[2]) for n in tensors if n.startswith(f"{side}.layers.")})
        stages: list[tuple[int, int]] = []
        for number in numbers:
            weight = tensors.get(f"{side}.layers.{number}.weight")
            if weight is not None:
                stages.append((int(weight.shape[0]), 0))
            elif stages:
                stages[-1] = (stages[-1][0], stages[-1][1] + 1)
        config[f"{side}_block_out_channels"] = [width for width, _ in stages[:-1]]
        config[f"num_{side}_blocks"] = [count for _, count in stages[:-1]]
        if stages and side == "encoder":
            config["latent_channels"] = stages[-1][0]
    return config
