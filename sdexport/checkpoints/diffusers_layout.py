"""Where a checkpoint in diffusers' layout keeps its components, and which classes are exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from sdexport.runtime.models import families
from sdexport.runtime.models.components import VAE_DECODER

CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = families.source_classes()
"""For each component the library and the classes that are exported."""
VAE_CLASSES = CLASSES[VAE_DECODER.source][1]
_TOKENIZERS = {spec.source: spec.tokenizer for spec in families.text_encoders()}
TEXT_ENCODERS = tuple(_TOKENIZERS)


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
