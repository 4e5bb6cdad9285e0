"""The names of layers in LoRA files of kohya, diffusers (old and new), PEFT and original layout.

Every spelling is reduced to one key with underscores, which is looked up among a module's layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

ROLES = {
    "lora_down": "down",
    "lora_up": "up",
    "lora_mid": "mid",
    "lora_A": "down",
    "lora_B": "up",
    "lora.down": "down",
    "lora.up": "up",
    "lora_linear_layer.down": "down",
    "lora_linear_layer.up": "up",
}
_ROLE = re.compile(
    r"^(?P<name>.+?)[._](?P<role>lora_(?:down|up|mid|A|B)|lora(?:_linear_layer)?\.(?:down|up))"
    r"(?:\.default)?\.weight$"
)
_ALPHA = re.compile(r"^(?P<name>.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha$")
_OTHER_METHODS = (
    (re.compile(r"dora_scale|lora_magnitude_vector"), "DoRA"),
    (re.compile(r"\.hada_w\d"), "LoHa"),
    (re.compile(r"\.lokr_w\d"), "LoKr"),
    (re.compile(r"\.oft_(blocks|diag)|\.oft_R\b"), "OFT"),
    (re.compile(r"\.(diff|diff_b)$"), "full-difference"),
    (re.compile(r"\.on_input$"), "IA3"),
    (re.compile(r"\.(glora_)?[ab]\d\.weight$"), "GLoRA"),
    (re.compile(r"\.lora_[AB](\.default)?\.bias$"), "LoRA-with-bias"),
)
_PREFIXES = (
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("lora_unet_", "unet"),
    ("text_encoder_2_", "text_encoder_2"),
    ("text_encoder_", "text_encoder"),
    ("diffusion_model_", "unet"),
    ("unet_", "unet"),
    ("text_model_", "text_encoder"),
    ("", "unet"),
)
_RESNET = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}


def split_name(name: str) -> tuple[str, str] | None:
    """The layer as spelled, and "down", "up", "mid" or "alpha"; None for other names."""
    if match := _ROLE.match(name):
        return match["name"], ROLES[match["role"]]
    if match := _ALPHA.match(name):
        return match["name"], "alpha"
    return None


def other_method(name: str) -> str | None:
    """The method of a weight, if it is one that is not supported; otherwise None."""
    return next((method for pattern, method in _OTHER_METHODS if pattern.search(name)), None)


def part_and_key(spelled: str) -> tuple[str, str]:
    """The component of a checkpoint, and the key as in `layer_keys`."""
    key = spelled.removeprefix("base_model.model.").replace(".", "_")
    prefix, part = next((p, part) for p, part in _PREFIXES if key.startswith(p))
    return part, key.removeprefix(prefix).removeprefix("text_model_").replace("_processor_", "_")


def layer_keys(part: str, module: nn.Module) -> dict[str, str]:
    """The names of a module's linear and convolutional layers, by every key that files use."""
    keys = {}
    names = [n for n, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for name in names:
        flat = name.removeprefix("text_model.").replace(".", "_")
        keys[flat] = name
        if flat.endswith("_to_out_0"):
            keys[flat.removesuffix("_0")] = name
        for projection in "qkv":  # the first LoRA files of diffusers for text encoders
            if flat.endswith(f"_{projection}_proj"):
                keys[f"{flat.removesuffix(f'_{projection}_proj')}_to_{projection}"] = name
        if flat.endswith("self_attn_out_proj"):
            keys[f"{flat.removesuffix('_out_proj')}_to_out"] = name
    if part == "unet":
        for prefix, original in _original_blocks(module):
            inside = [name for name in names if name.startswith(f"{prefix}.")]
            keys |= {original + _inside(prefix, name): name for name in inside}
        keys |= {key: name for name, key in _TOP.items() if name in names}
    return keys


def _inside(prefix: str, name: str) -> str:
    rest = name.removeprefix(f"{prefix}.")
    if ".resnets." in prefix:
        rest = _RESNET.get(rest, rest)
    elif ".downsamplers." in prefix:
        rest = "op"
    return "_" + rest.replace(".", "_")


def _original_blocks(unet: Any) -> Iterator[tuple[str, str]]:
    """(name in diffusers, name in the original layout) of every block of a UNet."""
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks_{number}_0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks_{number}_1"
            number += 1
        if block.downsamplers:
            yield f"down_blocks.{i}.downsamplers.0", f"input_blocks_{number}_0"
            number += 1
    middle: Mapping[str, str] = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
    for name, digit in middle.items():
        yield f"mid_block.{name}", f"middle_block_{digit}"
    number = 0
    for i, block in enumerate(unet.up_blocks):
        last = len(block.resnets) - 1
        for j in range(last + 1):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks_{number}_0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks_{number}_1"
            if j == last and block.upsamplers:
                place = 2 if getattr(block, "attentions", None) else 1
                yield f"up_blocks.{i}.upsamplers.0", f"output_blocks_{number}_{place}"
            number += 1
