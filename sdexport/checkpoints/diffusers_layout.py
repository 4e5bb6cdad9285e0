"""Where a checkpoint in diffusers' layout keeps its components, and which classes are exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import read_config
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.models import families
from sdexport.runtime.models.components import VAE_DECODER

CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = families.source_classes()
"""For each component the library and the classes that are exported."""
VAE_CLASSES = CLASSES[VAE_DECODER.source][1]
_TOKENIZERS = {spec.source: spec.tokenizer for spec in families.text_encoders()}
TEXT_ENCODERS = tuple(_TOKENIZERS)
VARIANTS = (None, "fp16")


def present_components(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The components that model_index.json names."""
    return tuple(part for part in CLASSES if index.get(part) not in (None, [None, None]))


def text_encoders_of(parts: Iterable[str]) -> tuple[str, ...]:
    """The text encoders among the components, in their order."""
    present = set(parts)
    return tuple(part for part in TEXT_ENCODERS if part in present)


def tokenizer_folder(part: str) -> str:
    """The folder of a text encoder's tokenizer."""
    return _TOKENIZERS[part]


def component_class(part: str, name: str) -> Any:
    """The class of that name in the component's library."""
    return getattr(import_module(CLASSES[part][0]), name)


def variant(folder: Path, part: str) -> str | None:
    """None, or "fp16" if the component's only weights are of that variant."""
    return next((name for name in VARIANTS if has_weights(folder, part, name)), None)


def has_weights(folder: Path, part: str, variant: str | None = None) -> bool:
    """Whether the component has weights of a variant, in one file or in shards."""
    return any((folder / part / file).is_file() for file in _weight_names(part, variant))


def weight_files(folder: Path, part: str) -> list[Path]:
    """The safetensors files of a component.

    Raises: CheckpointError: some are missing, or the list of shards is damaged.
    """
    whole, listed = _weight_names(part, variant(folder, part))
    files, shards = [folder / part / whole], folder / part / listed
    if not files[0].is_file() and shards.is_file():
        weight_map = read_config(shards).get("weight_map", {})
        names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise CheckpointError(f"{shards} is damaged: it names files outside of its folder")
        files = sorted(folder / part / str(name) for name in set(names))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(
            f"{folder}: {part}: missing {', '.join(missing) or 'weights'}; download it again"
        )
    return files


def _weight_names(part: str, variant: str | None) -> tuple[str, str]:
    """The single file of all weights, and the list of shards that may replace it."""
    stem = "model" if part in TEXT_ENCODERS else "diffusion_pytorch_model"
    dotted = f".{variant}" if variant else ""
    return f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"
