"""Stable Diffusion XL and its refiner: two text encoders, pooled embeddings, image sizes.

Source: Podell et al. 2023, arXiv 2307.01952.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sdexport.engines import TensorSpec
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.models.components import UNET, VAE_DECODER, VAE_ENCODER, clip_text_encoder
from sdexport.runtime.models.conditioning import (
    SCORED_TIME_IDS,
    ConditioningInput,
    ConditioningRequest,
    Configs,
)
from sdexport.runtime.models.family import Defaults, ModelFamily
from sdexport.runtime.models.text_layers import PROJECTED, TextLayers

_SECOND_ENCODER = clip_text_encoder(2, projected=True)


def _pooled_width(configs: Configs) -> int:
    return int(configs[_SECOND_ENCODER.source].projection_dim)


def _time_ids(configs: Configs) -> int:
    """How many numbers time_ids holds: what the projection takes after the pooled embeddings."""
    denoiser = configs[UNET.source]
    rest = denoiser.projection_class_embeddings_input_dim - _pooled_width(configs)
    return int(rest // denoiser.addition_time_embed_dim)


def _pooled_value(request: ConditioningRequest, spec: TensorSpec) -> np.ndarray:
    if request.pooled is None:
        raise InvalidArgumentError(
            "pooled_prompt_embeds must come with prompt_embeds for this package"
        )
    return request.pooled


def _time_ids_value(request: ConditioningRequest, spec: TensorSpec) -> np.ndarray:
    scored = request.scored or spec.shape[-1] == SCORED_TIME_IDS
    return request.sizes.time_ids(request.count, scored=scored, guided=request.guided)


POOLED_TEXT = ConditioningInput(
    PROJECTED,
    shape=lambda configs: ("batch", _pooled_width(configs)),
    value=_pooled_value,
    added=True,
)
TIME_IDS = ConditioningInput(
    "time_ids",
    shape=lambda configs: ("batch", _time_ids(configs)),
    value=_time_ids_value,
    added=True,
    full_precision=True,
    example_below=1024,
)

STABLE_DIFFUSION_XL = ModelFamily(
    name="stable-diffusion-xl",
    pipelines=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    components=(clip_text_encoder(), _SECOND_ENCODER, UNET, VAE_DECODER, VAE_ENCODER),
    text_to_image=Defaults(guidance_scale=5.0),
    image_to_image=Defaults(guidance_scale=5.0, strength=0.3),
    inpainting=Defaults(strength=0.9999),
    conditioning=(POOLED_TEXT, TIME_IDS),
    text_layers=TextLayers(penultimate=True),
    zero_negative=True,
    schedules={"align_your_steps": "align_your_steps_xl"},
    reports_nsfw=False,
    half_precision_vae=False,
    normalised_latents=True,
)

STABLE_DIFFUSION_XL_REFINER = replace(
    STABLE_DIFFUSION_XL,
    name="stable-diffusion-xl-refiner",
    components=(_SECOND_ENCODER, UNET, VAE_DECODER, VAE_ENCODER),
    refines=True,
)
