"""Stable Diffusion 1 and 2: one CLIP text encoder, no further conditioning."""

from sdexport.runtime.models.components import (
    SAFETY_CHECKER,
    UNET,
    VAE_DECODER,
    VAE_ENCODER,
    clip_text_encoder,
)
from sdexport.runtime.models.family import Defaults, ModelFamily

STABLE_DIFFUSION = ModelFamily(
    name="stable-diffusion",
    pipelines=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    ),
    components=(clip_text_encoder(), UNET, VAE_DECODER, VAE_ENCODER, SAFETY_CHECKER),
    text_to_image=Defaults(),
    image_to_image=Defaults(strength=0.8),
    inpainting=Defaults(strength=1.0),
)
