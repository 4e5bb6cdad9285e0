"""Recognising the model family of a single file, and the settings that differ from its family's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from sdexport.checkpoints.published_configs import SingleFileFamily
from sdexport.checkpoints.state_dicts import UNET_PREFIX
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError, InvalidArgumentError

logger = logging.getLogger(__name__)

PREDICTION_TYPES = ("epsilon", "v_prediction")
_BASE_SIZE = 64
"""Latents per side that SD 2's epsilon model was trained on."""
_OTHER_CHANNELS = {5: "depth-to-image", 7: "upscaling", 8: "instruct-pix2pix"}
_PREDICTION_NAMES = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def check_prediction_type(prediction_type: str | None) -> None:
    """Raises: InvalidArgumentError: neither None nor one of PREDICTION_TYPES."""
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise InvalidArgumentError(
            f"prediction type must be {' or '.join(PREDICTION_TYPES)}, got {prediction_type!r}"
        )


def family_of(
    file: WeightFile, families: Sequence[SingleFileFamily], prediction_type: str | None = None
) -> SingleFileFamily:
    """The family of a checkpoint in the original layout, with this file's own settings filled in.

    Args:
      families: to choose from.
      prediction_type: overrides what the file says.
    Raises: CheckpointError: not a checkpoint of one of the families.
    """
    return _with_prediction(file, _with_channels(file, _recognise(file, families)), prediction_type)


def _recognise(file: WeightFile, families: Sequence[SingleFileFamily]) -> SingleFileFamily:
    names = file.tensors
    if file.kind != "a Stable Diffusion checkpoint":
        raise CheckpointError(
            f"{file.path} is {file.kind}; expected a Stable Diffusion checkpoint in the original "
            "layout (SD 1, SD 2, SDXL), or a diffusers folder"
        )
    if "edm_mean" in names:
        raise CheckpointError(
            f"{file.path} is Playground v2.5, whose EDM scheduling is not supported"
        )
    for family in families:
        prefixes = [layout.prefix for layout in family.text_encoders.values()]
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes):
            return family
    raise CheckpointError(
        f"{file.path} holds a UNet but no text encoder of SD 1, SD 2 or SDXL; "
        "export the whole checkpoint"
    )


def _with_channels(file: WeightFile, family: SingleFileFamily) -> SingleFileFamily:
    """The inpainting variant of the family, if the UNet takes a mask and a masked image."""
    weight = file.tensors.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    channels = weight.shape[1] if weight is not None and weight.ndim == 4 else 0
    if channels == family.unet["in_channels"]:
        return family
    if channels != 9 or family.inpaint_pipeline is None:
        purpose = _OTHER_CHANNELS.get(channels, "unknown")
        raise CheckpointError(
            f"{file.path}: {family.name} with {channels} input channels ({purpose}) is not "
            "supported; expected 4, or 9 for inpainting"
        )
    return replace(family, pipeline=family.inpaint_pipeline, unet={**family.unet, "in_channels": 9})


def _with_prediction(
    file: WeightFile, family: SingleFileFamily, chosen: str | None
) -> SingleFileFamily:
    """Prediction type, noise schedule and size, where they differ from the family's."""
    stated = _PREDICTION_NAMES.get(file.metadata.get("modelspec.prediction_type", ""))
    if "v_pred" in file.tensors:
        stated = "v_prediction"
    default = family.scheduler["prediction_type"]
    if default == "v_prediction" and family.unet["in_channels"] != 4:
        default = "epsilon"  # the published SD 2 for inpainting
    elif default == "v_prediction" and not (chosen or stated):
        logger.warning(
            "%s: assumed to be the SD 2 of 768 pixels, which predicts v; "
            "for the one of 512 give --prediction-type epsilon",
            file.path,
        )
    prediction = chosen or stated or default
    scheduler = {**family.scheduler, "prediction_type": prediction}
    if "ztsnr" in file.tensors:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    unet = dict(family.unet)
    if family.scheduler["prediction_type"] != "epsilon" and prediction == "epsilon":
        unet["sample_size"] = _BASE_SIZE
    return replace(family, scheduler=scheduler, unet=unet)
