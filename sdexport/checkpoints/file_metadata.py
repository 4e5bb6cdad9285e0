"""The texts in a .safetensors file: read elsewhere, known to be without effect, or warned about."""

from __future__ import annotations

import logging

from sdexport.checkpoints.published_configs import SingleFileFamily
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.messages import one_line
from sdexport.runtime.adapters.header_entries import warn_about_unknown

logger = logging.getLogger(__name__)

_CLIP_SKIPS = ("modelspec.encoder_layer", "ss_clip_skip")


def check_metadata(file: WeightFile, family: SingleFileFamily) -> None:
    """Warn of texts that contradict the weights, that no option follows, or that are unknown."""
    warn_about_unknown(file.path, file.metadata)
    architecture = file.metadata.get("modelspec.architecture", "").partition("/")[0]
    if architecture and not architecture.startswith(family.architecture):
        logger.warning(
            "%s: its metadata calls it %s, but its weights are those of %s",
            file.path,
            one_line(architecture, 60),
            family.name,
        )
    layers = next((file.metadata[key] for key in _CLIP_SKIPS if key in file.metadata), "")
    if (
        layers.isascii()
        and layers.isdecimal()
        and 1 < int(layers) < 100
        and family.architecture[-2:] in ("v1", "v2")
    ):
        logger.warning(
            "%s: made for clip skip %s; generate its images with --clip-skip %d",
            file.path,
            layers,
            int(layers) - 1,
        )
