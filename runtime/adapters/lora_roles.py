"""What a weight of a LoRA file is for its layer: a factor, an alpha, a magnitude, a bias.

This module and lora_names read names alone; they need no PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_ADAPTER = r"(?:\.(?!weight$|bias$)[\w-]+)?"
"""PEFT's name of the adapter, such as ".default"."""
_PATTERNS = {
    "down": (
        r"lora_down\.weight",
        rf"lora_A{_ADAPTER}\.weight",
        r"lora_linear_layer\.down\.weight",
        r"lora\.down\.weight",
    ),
    "up": (
        r"lora_up\.weight",
        rf"lora_B{_ADAPTER}\.weight",
        r"lora_linear_layer\.up\.weight",
        r"lora\.up\.weight",
    ),
    "mid": (r"lora_mid\.weight",),
    "up_bias": (rf"lora_B{_ADAPTER}\.bias", r"lora(?:_linear_layer)?\.up\.bias"),
    "alpha": (r"lora(?:_linear_layer)?\.alpha", r"alpha"),
    "scale": (r"scale",),
    "magnitude": (rf"lora_magnitude_vector{_ADAPTER}(?:\.weight)?",),
    "dora_scale": (r"dora_scale",),
    "rescale": (r"rescale",),
    "on_input": (r"on_input",),
    **{name: (rf"hada_{name}",) for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{
        f"k_{name}": (rf"lokr_{name}",)
        for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    },
    **{name: (rf"{name}\.weight",) for name in ("a1", "a2", "b1", "b2", "bm")},
    **{name: (name,) for name in ("diff", "diff_b", "w_norm", "b_norm", "oft_blocks")},
}
_LAYER = r"^(?P<layer>.+?)"
_ROLES = [
    (re.compile(rf"{_LAYER}{'[._]' if pattern.startswith('lora') else '[.]'}{pattern}$"), role)
    for role, patterns in _PATTERNS.items()
    for pattern in patterns
]
_UNSUPPORTED = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
        (r"motion_modules?\.", "an AnimateDiff motion LoRA"),
        (r"^lora_controlnet$|^control_model\.|\.lora_controlnet", "a ControlLoRA"),
        (r"^(image_proj|ip_adapter)\.", "an IP-Adapter"),
        (r"_custom_diffusion\b", "Custom Diffusion"),
        (r"\.modules_to_save\b", "layers that PEFT saves whole (modules_to_save)"),
        (r"trainable_tokens_|token_adapter\.", "PEFT's trainable tokens"),
        (r"\.lora_embedding_[AB]\b", "a LoRA of an embedding table"),
        (r"\.lora_E\b|\branknum\b", "AdaLoRA"),
        (r"\.lora_A(\.[\w-]+)?\.bias$|\.lora_(up|down|mid)\.bias$", "LoRA factors with a bias"),
        (r"\b(base_)?lambda(_layer)?$|\.[pq]_layer\b", "T-LoRA, whose rank depends on the step"),
        (r"\bp?vera_lambda_|\bvblora_|\brandlora_|\blora_xs", "PEFT's VeRA or a relative of it"),
        (r"\bboft_[RS]\b", "PEFT's BOFT"),
        (r"\boft_[Rr]\b", "PEFT's OFT"),
        (r"\boft_diag\b", "OFT with one block for each layer (oft_diag)"),
        (r"\bia3_l\b", "PEFT's IA3"),
        (r"\blokr_t1\b", "LoKr with a first middle tensor (lokr_t1)"),
        (r"\bbias_(indices|values|size)$", "a LyCORIS extract with sparse differences"),
        (r"\b(reshape|set)_weight$", "weights of another shape (reshape_weight or set_weight)"),
        (r"\b(scale_weight|weight_scale|comfy_quant)\b", "scaled float8 weights"),
        (
            r"\b(poly_|hra_|fourierft_|waveft_|shira_|bone_|miss_|c3a_|delora_|road_|gralora_"
            r"|hira_|ln_tuning_|osf_|psoft_|tinylora_|unilora_)",
            "a method of PEFT that is not supported",
        ),
    )
)


def split_role(name: str, multiplied: Collection[str] = ()) -> tuple[str, str] | None:
    """The layer as spelled, and the role of the weight; None for other names.

    Args:
      multiplied: spellings of the layers that IA3 multiplies; their factor is called "weight".
    """
    layer, _, last = name.rpartition(".")
    if last == "weight" and layer in multiplied:
        return layer, "factor"
    for pattern, role in _ROLES:
        if match := pattern.match(name):
            return match["layer"], role
    return None


def unsupported_method(name: str) -> str | None:
    """What a weight belongs to, if that is known and not supported; otherwise None."""
    return next((method for pattern, method in _UNSUPPORTED if pattern.search(name)), None)
