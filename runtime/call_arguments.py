"""Arguments of a pipeline call that are not taken, and those that say what it returns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown

OUTPUT_TYPES = ("pil", "np", "latent")

_CONTROLNET = (
    "give controlnets=[sdexport.ControlNet(package, image, scale=1.0, start=0.0, end=1.0, "
    "guess_mode=False)]"
)
_IP_ADAPTER = "give ip_adapters=[sdexport.IPAdapter(package, images, scale=1.0, masks=None)]"
_T2I_ADAPTER = "give t2i_adapters=[sdexport.T2IAdapter(package, image, scale=1.0, factor=1.0)]"
_OLD_CALLBACK = "use callback_on_step_end or on_step"
_AT_LOAD = "it is an option of load_pipeline or of the package's export"
NOT_TAKEN = {
    "cross_attention_kwargs": (
        "it changes PyTorch's attention layers, which a package does not have; "
        "give LoRAs as loras=[(file, scale)]"
    ),
    "ip_adapter_image": _IP_ADAPTER,
    "ip_adapter_image_embeds": _IP_ADAPTER,
    "control_image": _CONTROLNET,
    "control_guidance_start": _CONTROLNET,
    "control_guidance_end": _CONTROLNET,
    "control_mode": f"{_CONTROLNET} with mode, once for each",
    "controlnet_conditioning_scale": _CONTROLNET,
    "guess_mode": _CONTROLNET,
    "adapter_conditioning_scale": _T2I_ADAPTER,
    "adapter_conditioning_factor": _T2I_ADAPTER,
    "safety_checker": "give safety=True, which runs the one of the package",
    "masked_image_latents": "give image and mask_image; their latents are computed from them",
    "pag_scale": "perturbed-attention guidance is not supported",
    "pag_adaptive_scale": "perturbed-attention guidance is not supported",
    "sag_scale": "self-attention guidance is not supported",
    "image_guidance_scale": "InstructPix2Pix is not supported",
    "prompt_3": "models with three text encoders are not supported",
    "negative_prompt_3": "models with three text encoders are not supported",
    "max_sequence_length": "models with a T5 text encoder are not supported",
    "joint_attention_kwargs": "transformer models are not supported",
    "mu": "flow-matching models are not supported",
    "callback": _OLD_CALLBACK,
    "callback_steps": _OLD_CALLBACK,
    "device": _AT_LOAD,
    "torch_dtype": _AT_LOAD,
    "dtype": _AT_LOAD,
    "backend": _AT_LOAD,
    "batch_size": "use num_images_per_prompt",
    "num_images": "use num_images_per_prompt",
    "n_iter": "use num_images_per_prompt",
    "steps": "use num_inference_steps",
    "cfg_scale": "use guidance_scale",
    "cfg": "use guidance_scale",
    "sampler": "use scheduler",
    "sampler_name": "use scheduler",
    "denoise": "use strength",
    "denoising_strength": "use strength",
    "mask": "use mask_image",
    "init_image": "use image",
}
"""Names from diffusers and other programs that a call does not take: why, or what to use."""


def reject_unknown(unknown: Mapping[str, object], known: Collection[str]) -> None:
    """Reject arguments that a pipeline call does not have.

    Args:
      unknown: their values by name. None is allowed for those of diffusers and other programs,
        where it says that they are not used.
      known: the names that it has.
    Raises: InvalidArgumentError: there is one; names the nearest, or what to do instead.
    """
    for name, value in unknown.items():
        if name in NOT_TAKEN and value is None:
            continue
        if name in NOT_TAKEN:
            raise InvalidArgumentError(f"a pipeline takes no argument {name}: {NOT_TAKEN[name]}")
        similar = difflib.get_close_matches(name.lower(), known, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"it takes {', '.join(known)}"
        raise InvalidArgumentError(f"a pipeline takes no argument {shown(name)}; {hint}")


def check_output(output_type: object, return_dict: object) -> None:
    """Raises: InvalidArgumentError: a kind of output that does not exist."""
    if output_type not in OUTPUT_TYPES:
        hint = f"choose one of {', '.join(OUTPUT_TYPES)}"
        if output_type == "pt":
            hint = "there is no torch; take 'np' and torch.from_numpy(images).permute(0, 3, 1, 2)"
        raise InvalidArgumentError(f"unknown output_type {shown(output_type)}; {hint}")
    if not isinstance(return_dict, bool):
        raise InvalidArgumentError(f"return_dict must be True or False, got {shown(return_dict)}")
