"""Recognising the model family of a single file, and the settings that differ from its family's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdexport.checkpoints.file_prediction import with_prediction
from sdexport.checkpoints.published_configs import LCM_SCHEDULER, SingleFileFamily
from sdexport.checkpoints.state_dicts import UNET_PREFIX
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError

_OTHER_CHANNELS = {5: "depth-to-image", 7: "upscaling", 8: "instruct-pix2pix"}
_LATENT_CONSISTENCY = {"StableDiffusionPipeline": "LatentConsistencyModelPipeline"}
_GUIDANCE_EMBEDDING = f"{UNET_PREFIX}time_embed.cond_proj.weight"


def family_of(
    file: WeightFile, families: Sequence[SingleFileFamily], prediction_type: str | None = None
) -> SingleFileFamily:
    """The family of a checkpoint in the original layout, with this file's own settings filled in.

    Args:
      families: to choose from.
      prediction_type: overrides what the file says.
    Raises: CheckpointError: not a checkpoint of one of the families.
    """
    family = _with_channels(file, _recognise(file, families))
    return with_prediction(file, _with_guidance_embedding(file, family), prediction_type)


def _recognise(file: WeightFile, families: Sequence[SingleFileFamily]) -> SingleFileFamily:
    names = file.tensors
    if file.kind != "a Stable Diffusion checkpoint":
        raise CheckpointError(
            f"{file.path} is {file.kind}; expected a Stable Diffusion checkpoint in the original "
            "layout (SD 1, SD 2, SDXL), or a diffusers folder"
        )
    lacking = []
    for family in families:
        prefixes = [layout.prefix for layout in family.text_encoders.values()]
        missing = [p for p in prefixes if not any(name.startswith(p) for name in names)]
        if not missing:
            return family
        if len(missing) < len(prefixes):
            lacking.append(
                f"only one of the text encoders of {family.name} ({missing[0]}* is missing)"
            )
    found = " or ".join(lacking) or "no text encoder of SD 1, SD 2 or SDXL"
    raise CheckpointError(f"{file.path} holds a UNet but {found}; export the whole checkpoint")


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


def _with_guidance_embedding(file: WeightFile, family: SingleFileFamily) -> SingleFileFamily:
    """The latent consistency model of the family, if the UNet takes the guidance scale."""
    weight = file.tensors.get(_GUIDANCE_EMBEDDING)
    if weight is None or weight.ndim != 2:
        return family
    unet = {**family.unet, "time_cond_proj_dim": weight.shape[1]}
    pipeline = _LATENT_CONSISTENCY.get(family.pipeline, family.pipeline)
    return replace(family, pipeline=pipeline, unet=unet, scheduler=LCM_SCHEDULER)
