"""A small package whose graphs take LoRAs and ControlNets, and the checkpoint it was made from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdexport import Pipeline, load_pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.lora import Lora
from sdexport.exporter import export
from sdexport.graphs.wrappers import parts
from sdexport.verification.reference import TorchSession
from tests.helpers.families import build

FAMILY = "sd1"


def make(folder: Path, family: str = FAMILY) -> None:
    """Write checkpoint/ and package/ to a folder."""
    folder.mkdir()
    checkpoint = build(family, folder / "checkpoint")
    export(checkpoint, folder / "package", lora_inputs=True, controlnet_inputs=True)


def merged(
    folder: Path, modules: Mapping[str, Any], loras: Sequence[tuple[Path, float]]
) -> Pipeline:
    """A pipeline over PyTorch, with the LoRAs merged as an export does.

    Args:
      folder: that `make` wrote. modules: of its checkpoint, which stay as they are.
    """
    changed = {part: copy.deepcopy(module) for part, module in modules.items() if part != "vae"}
    for path, scale in loras:
        lora = Lora.open(path, scale, changed)
        for part, module in changed.items():
            lora.merge_into(part, module)
    configs = Checkpoint.open(folder / "checkpoint").configs
    sessions: Any = {
        part.name: TorchSession(part, changed[part.source])
        for part in parts(configs)
        if part.source in changed
    }
    return load_pipeline(folder / "package", sessions=sessions)
