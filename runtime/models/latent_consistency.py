"""Latent consistency models: a family whose denoiser takes the guidance scale as an input.

Source: Luo et al. 2023, arXiv 2310.04378, section 4.2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sdexport.engines import TensorSpec
from sdexport.engines.errors import EngineError
from sdexport.runtime.models.components import UNET
from sdexport.runtime.models.conditioning import (
    ConditioningInput,
    ConditioningRequest,
    guidance_embedding,
)
from sdexport.runtime.models.family import Defaults, ModelFamily

_PIPELINES = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")


def _value(request: ConditioningRequest, spec: TensorSpec) -> np.ndarray:
    width = spec.shape[-1]
    if not isinstance(width, int):
        raise EngineError(f"{UNET.name}: input '{spec.name}' must have a fixed width")
    return np.repeat(guidance_embedding(request.guidance_scale, width), request.rows, axis=0)


GUIDANCE_EMBEDDING = ConditioningInput(
    "timestep_cond",
    shape=lambda configs: ("batch", configs[UNET.source].time_cond_proj_dim),
    value=_value,
)


def latent_consistency(base: ModelFamily) -> ModelFamily:
    """The family distilled from `base`."""
    return replace(
        base,
        name=base.name.replace("stable-diffusion", "latent-consistency"),
        pipelines=(*base.pipelines, *_PIPELINES),
        text_to_image=Defaults(4, 8.5),
        image_to_image=Defaults(4, 8.5, 0.8),
        inpainting=Defaults(4, 8.5, 1.0),
        conditioning=(*base.conditioning, GUIDANCE_EMBEDDING),
        guidance_embedding=True,
        # diffusers has a pipeline of its own for these, and for SDXL only the ordinary ones
        strength_shortens=not base.conditioning,
    )
