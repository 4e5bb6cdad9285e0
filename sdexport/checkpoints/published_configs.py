"""The published configurations of the families that are distributed as single files.

A file in the original layout holds only weights. Source: the configurations that the models
stable-diffusion-v1-5, stable-diffusion-2-1, stable-diffusion-xl-base-1.0 and -refiner-1.0 have on
the hub; Rombach et al. 2022, arXiv 2112.10752; Podell et al. 2023, arXiv 2307.01952, table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class TextLayout:
    """A text encoder in a single file.

    prefix: start of the names of its weights.
    openclip: whether the weights are in OpenCLIP's layout, and not in that of transformers.
    projected: whether the pooled output is projected.
    """

    prefix: str
    openclip: bool
    projected: bool
    config: Config

    @property
    def class_name(self) -> str:
        """The class of transformers."""
        return "CLIPTextModelWithProjection" if self.projected else "CLIPTextModel"

    @property
    def pad_token(self) -> str:
        """The token for padding: OpenCLIP uses id 0, which is "!"; CLIP repeats the end token."""
        return "!" if self.openclip else "<|endoftext|>"


@dataclass(frozen=True)
class SingleFileFamily:
    """A family of single files: how it is recognised, and its configurations.

    name: for messages.
    architecture: how the metadata of its files begins to name it.
    pipeline, inpaint_pipeline: the classes of diffusers; None if there is no inpainting model.
    text_encoders: by component; a file that has all their prefixes is of this family.
    index: entries of model_index.json other than the components.
    """

    name: str
    architecture: str
    pipeline: str
    inpaint_pipeline: str | None
    text_encoders: Mapping[str, TextLayout]
    unet: Config
    vae: Config
    scheduler: Config
    index: Config


_TEXT = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-05,
    "attention_dropout": 0.0,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
CLIP_L = _TEXT | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "pad_token_id": 49407,
}
OPENCLIP_H = _TEXT | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of 24: the last one is not used
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "pad_token_id": 0,
}
OPENCLIP_BIGG = _TEXT | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "pad_token_id": 0,
}

_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNET_SD1 = _UNET | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
UNET_SD2 = _UNET | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
UNET_SDXL = _UNET | {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNET_REFINER = UNET_SDXL | {
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}

VAE_SD = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
VAE_SDXL = VAE_SD | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}

_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_PNDM = _SCHEDULER | {
    "_class_name": "PNDMScheduler",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
_DDIM_V = _SCHEDULER | {
    "_class_name": "DDIMScheduler",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "v_prediction",
}
_EULER = _SCHEDULER | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}
LCM_SCHEDULER = _SCHEDULER | {
    "_class_name": "LCMScheduler",
    "clip_sample": False,
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_scaling": 10.0,
}
"""Of latent consistency models; Luo et al. 2023, arXiv 2310.04378."""
EDM_EULER = {
    "_class_name": "EDMEulerScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "sigma_max": 120.0,
    "sigma_min": 0.002,
    "sigma_schedule": "exponential",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
"""Of CosXL, as diffusers documents it."""
EDM_DPM_SOLVER = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
}
"""Of Playground v2.5, as diffusers' from_single_file writes it."""
PLAYGROUND_SCALING_FACTOR = 0.5
_NO_CHECKER = {"feature_extractor": [None, None], "safety_checker": [None, None]}

FAMILIES = (
    SingleFileFamily(
        "Stable Diffusion 1",
        "stable-diffusion-v1",
        "StableDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
        {"text_encoder": TextLayout("cond_stage_model.transformer.", False, False, CLIP_L)},
        UNET_SD1,
        VAE_SD,
        _PNDM,
        _NO_CHECKER,
    ),
    SingleFileFamily(
        "Stable Diffusion 2",
        "stable-diffusion-v2",
        "StableDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
        {"text_encoder": TextLayout("cond_stage_model.model.", True, False, OPENCLIP_H)},
        UNET_SD2,
        VAE_SD,
        _DDIM_V,
        _NO_CHECKER,
    ),
    SingleFileFamily(
        "Stable Diffusion XL",
        "stable-diffusion-xl",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLInpaintPipeline",
        {
            "text_encoder": TextLayout(
                "conditioner.embedders.0.transformer.", False, False, CLIP_L
            ),
            "text_encoder_2": TextLayout(
                "conditioner.embedders.1.model.", True, True, OPENCLIP_BIGG
            ),
        },
        UNET_SDXL,
        VAE_SDXL,
        _EULER,
        {"force_zeros_for_empty_prompt": True},
    ),
    SingleFileFamily(
        "Stable Diffusion XL refiner",
        "stable-diffusion-xl-v1-refiner",
        "StableDiffusionXLImg2ImgPipeline",
        None,
        {
            "text_encoder_2": TextLayout(
                "conditioner.embedders.0.model.", True, True, OPENCLIP_BIGG
            ),
        },
        UNET_REFINER,
        VAE_SDXL,
        _EULER,
        {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
    ),
)
