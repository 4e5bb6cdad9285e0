"""The texts in a .safetensors file: read elsewhere, known to be without effect, or warned about."""

from __future__ import annotations

import logging
import re

from sdexport.checkpoints.published_configs import SingleFileFamily
from sdexport.checkpoints.weight_file import WeightFile

logger = logging.getLogger(__name__)

_NAMED = 5
"""Unknown keys that a warning names; it counts the others."""
_WITHOUT_EFFECT = re.compile(
    r"format|comment|prompt|workflow|recipe|name|title|author|description|license|version|__\w+__"
    r"|_quantization_metadata"  # read by quantised_weights.py
    r"|modelspec\.\w+"  # read by file_prediction.py, or about the file itself
    r"|(ss|sshs|ot|sd_merge|merge|civitai|spec)_\w+"  # about training and merging
)
_CLIP_SKIPS = ("modelspec.encoder_layer", "ss_clip_skip")


def check_metadata(file: WeightFile, family: SingleFileFamily) -> None:
    """Warn of texts that contradict the weights, that no option follows, or that are unknown."""
    unknown = sorted(key for key in file.metadata if not _WITHOUT_EFFECT.fullmatch(key))
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        logger.warning(
            "%s: unknown metadata is ignored: %s%s",
            file.path,
            ", ".join(f"{key:.40}" for key in unknown[:_NAMED]),
            more,
        )
    architecture = file.metadata.get("modelspec.architecture", "").partition("/")[0]
    if architecture and not architecture.startswith(family.architecture):
        logger.warning(
            "%s: its metadata calls it %.60s, but its weights are those of %s",
            file.path,
            architecture,
            family.name,
        )
    layers = next((file.metadata[key] for key in _CLIP_SKIPS if key in file.metadata), "")
    if layers.isdecimal() and 1 < int(layers) < 100 and family.architecture[-2:] in ("v1", "v2"):
        logger.warning(
            "%s: made for clip skip %s; generate its images with --clip-skip %d",
            file.path,
            layers,
            int(layers) - 1,
        )
