"""The LoRA files that an argument of --lora names: a file, or a folder as trainers write it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.engines.messages import one_line, shown

logger = logging.getLogger(__name__)

LARGEST_SCALE = 100.0
_NAMES = ("pytorch_lora_weights", "adapter_model")
_SUFFIXES = (".safetensors", ".bin")
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class LoraSource:
    """A LoRA file, its scale, and the component that it is for if the folder says so."""

    path: Path
    scale: float
    component: str | None = None


def parse_lora(text: str) -> tuple[Path, float]:
    """Path and scale of an argument PATH or PATH:SCALE; a path with colons in its name is found.

    Raises: FileNotFoundError: no such file or folder. InvalidArgumentError: the scale is not a
      number of -100..100.
    """
    if text and Path(text).exists():
        return Path(text), 1.0
    name, _, number = text.rpartition(":")
    if not name or not Path(name).exists():
        raise FileNotFoundError(f"no LoRA at {text}: expected FILE, FOLDER or FILE:SCALE")
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not abs(scale) <= LARGEST_SCALE:  # true for NaN as well
        raise InvalidArgumentError(
            f"{name}: expected a scale of -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}, "
            f"got {shown(number)}"
        )
    return Path(name), scale


def lora_sources(text: str) -> list[LoraSource]:
    """The files that PATH or PATH:SCALE names, in the order in which they are merged.

    Raises: see parse_lora and sources_at.
    """
    return sources_at(*parse_lora(text))


def sources_at(path: Path, scale: float = 1.0) -> list[LoraSource]:
    """The files of a LoRA: the file itself, or those of a folder.

    A folder holds one LoRA file, as diffusers' save_lora_weights and PEFT's save_pretrained write
    it, or a folder of PEFT for each component.

    Raises: CheckpointError: no LoRA in the folder, or several.
    """
    sources = files_at(path, scale)
    if sources[0].path.parent == path:
        found = sources[0].path
        others = sorted(p.name for p in path.glob("*.safetensors") if p.stem != found.stem)
        if others:
            names = ", ".join(one_line(name, 80) for name in others)
            logger.warning("%s: %s is used; not used: %s", path, found.name, names)
    return sources


def files_at(path: Path, scale: float = 1.0) -> list[LoraSource]:
    """As sources_at, without a warning of files that are not used."""
    if not path.is_dir():
        return [LoraSource(path, scale)]
    if found := _in_folder(path):
        return [LoraSource(found, scale)]
    parts = [(part, _in_folder(path / part)) for part in _COMPONENTS]
    sources = [LoraSource(file, scale, part) for part, file in parts if file is not None]
    if not sources:
        inside = sorted(entry.name for entry in path.iterdir())
        listed = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        raise CheckpointError(
            f"{path}: no LoRA in this folder; expected {' or '.join(_NAMES)}.safetensors, "
            + (f"got {listed}" if inside else "it is empty")
        )
    return sources


def _in_folder(folder: Path) -> Path | None:
    """The LoRA file of a folder; None if there is none."""
    named = [folder / f"{name}{suffix}" for suffix in _SUFFIXES for name in _NAMES]
    found = [path for path in named if path.is_file()]
    found = [path for path in found if path.suffix == found[0].suffix]
    if not found and folder.is_dir():
        found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{folder}: several LoRA files ({names}); give one of them")
    return found[0] if found else None
