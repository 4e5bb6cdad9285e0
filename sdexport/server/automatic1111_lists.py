"""What AUTOMATIC1111's API lists: samplers, schedule types, and kinds of models that there are none
of.

Source: modules/api/models.py, modules/sd_samplers_*.py and modules/sd_schedulers.py of
AUTOMATIC1111's web UI 1.10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdexport.runtime.schedulers.program_names import AUTOMATIC1111, LABELS, PROGRAMS
from sdexport.runtime.schedulers.schedule_names import LABELS as SCHEDULE_LABELS
from sdexport.runtime.schedulers.schedule_names import PROGRAM_SCHEDULES

NO_ITEMS = (
    *("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles"),
    *("upscalers", "latent-upscale-modes", "extensions", "sd-vae", "script-info"),
)
"""Routes that list something that this server has none of."""


def samplers() -> list[dict[str, Any]]:
    """The samplers under AUTOMATIC1111's names, with the aliases that it knows, then the others."""
    aliases: dict[str, list[str]] = {}
    for theirs, ours in PROGRAMS[AUTOMATIC1111].items():
        aliases.setdefault(ours, []).append(theirs)
    found = []
    for ours in dict.fromkeys([*aliases, *LABELS]):
        names = [*aliases.get(ours, []), ours]
        label = LABELS.get(ours, names[0])
        others = [name for name in names if name != label]
        found.append({"name": label, "aliases": others, "options": {}})
    return found


def schedulers() -> list[dict[str, Any]]:
    """The schedule types under AUTOMATIC1111's names, then the others."""
    theirs = PROGRAM_SCHEDULES[AUTOMATIC1111].values()
    names = dict.fromkeys([*theirs, *SCHEDULE_LABELS])
    return [
        {
            "name": name,
            "label": SCHEDULE_LABELS[name],
            "aliases": None,
            "default_rho": None,
            "need_inner_model": False,
        }
        for name in names
    ]


def model_title(name: str, sha256: str | None) -> str:
    """What clients show, and send as sd_model_checkpoint: "name [hash]"."""
    return f"{name} [{sha256[:10]}]" if sha256 else name


def model_item(name: str, sha256: str | None) -> dict[str, Any]:
    """A model in the list of sd-models; no path of the server is in it."""
    return {
        "title": model_title(name, sha256),
        "model_name": name,
        "hash": sha256[:10] if sha256 else None,
        "sha256": sha256,
        "filename": name,
        "config": None,
    }


def lora_item(name: str) -> dict[str, Any]:
    """A LoRA in the list of loras; no path of the server is in it."""
    return {"name": name, "alias": name, "path": name, "metadata": {}}


def scripts(*, controlnet: bool) -> dict[str, list[str]]:
    """The scripts for txt2img and img2img: ControlNet, if there is one."""
    names = ["controlnet"] if controlnet else []
    return {"txt2img": names, "img2img": names}


def memory(available: int | None) -> Mapping[str, Any]:
    """The answer of `memory`, from the bytes that are available."""
    ram = {"error": "unknown"} if available is None else {"free": available}
    return {"ram": ram, "cuda": {"error": "unavailable"}}
