"""Entries of a checkpoint's configurations that an export does not use: named, not dropped."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sdexport.checkpoints.diffusers_layout import text_encoders_of, tokenizer_folder
from sdexport.engines.messages import one_line
from sdexport.runtime.models.components import SAFETY_CHECKER

logger = logging.getLogger(__name__)

NO_COMPONENT = [None, None]
"""How model_index.json names a component that is not there."""
_MEANINGS = {
    "safety_checker": "so images are not checked",
    "image_encoder": "so there are no image prompts (IP-Adapter)",
}
_WITHOUT_EFFECT = frozenset(
    {
        "feature_extractor",  # of the safety checker or the image encoder
        "requires_safety_checker",
        "requires_aesthetics_score",  # read by the family
        "force_zeros_for_empty_prompt",  # read by the runtime
    }
)
_CONFIG_KEYS = frozenset(
    {"architectures", "model_type", "torch_dtype", "dtype", "dropout", "transformers_version"}
)
"""Keys of a component's configuration that change nothing when images are generated."""


def check_index(
    folder: Path,
    index: Mapping[str, Any],
    present: Collection[str],
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Warn of components and settings of model_index.json that are not exported.

    Args:
      present: the components that are exported.
      reasons: why some of the others are not, by name; "" for those that the caller left out.
    """
    used = {*present, "scheduler", *map(tokenizer_folder, text_encoders_of(present))}
    for name, value in index.items():
        if name in used or name in _WITHOUT_EFFECT or name.startswith("_"):
            continue
        if value in (None, NO_COMPONENT, False):
            continue
        shown, reason = one_line(name, 60), (reasons or {}).get(name)
        if reason == "":
            continue
        if isinstance(value, list):
            meaning = _MEANINGS.get(name, "so images may differ from those of the checkpoint")
            kind = f" ({one_line(value[-1], 60)})" if value and isinstance(value[-1], str) else ""
            why = f": {reason}" if reason else ""
            logger.warning("%s: its %s%s is not exported, %s%s", folder, shown, kind, meaning, why)
        else:
            logger.warning("%s: model_index.json: %s is unknown and ignored", folder, shown)


def package_index(index: Mapping[str, Any], present: Collection[str]) -> dict[str, Any]:
    """The content of a package's model_index.json.

    Components that the package does not hold become [None, None], so that Optimum and diffusers do
    not look for them.
    """
    held = {*present, "scheduler", *map(tokenizer_folder, text_encoders_of(present))}
    held.discard(SAFETY_CHECKER.source)  # which only this runtime reads
    return {
        name: NO_COMPONENT if isinstance(value, list) and name not in held else value
        for name, value in index.items()
    }


def warn_of_unknown_keys(
    folder: Path, part: str, config: Mapping[str, Any], known: Collection[str]
) -> None:
    """Warn of keys of a component's configuration that its class does not have."""
    unknown = [
        key
        for key in config
        if key not in known and key not in _CONFIG_KEYS and not key.startswith("_")
    ]
    if unknown:
        logger.warning(
            "%s: %s/config.json: unknown keys are ignored: %s",
            folder,
            part,
            ", ".join(one_line(key, 40) for key in sorted(unknown)),
        )
