"""LoRA files, of every method: merged into small layers, and read for graphs that take LoRAs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import types
from pathlib import Path
from typing import Any

import torch

from sdexport.checkpoints.lora import Lora
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.adapters.lora_file import read_lora
from sdexport.runtime.adapters.lora_folder import LoraSource
from sdexport.runtime.adapters.lora_inputs import LayerShape
from tests.fuzz import mutators
from tests.fuzz.harness import Target

FILE = "style.safetensors"


class _Attention(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(width, width)])


class _UNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(cross_attention_dim=8, addition_embed_type=None)
        self.conv_in = torch.nn.Conv2d(4, 8, 3)
        self.norm = torch.nn.LayerNorm(8)
        block = torch.nn.Module()
        block.attn1 = _Attention(8)
        self.mid_block = torch.nn.Module()
        self.mid_block.attentions = torch.nn.ModuleList([block])


class _TextEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.Module()
        layer.self_attn = torch.nn.Module()
        layer.self_attn.q_proj = torch.nn.Linear(8, 8)
        self.text_model = torch.nn.Module()
        self.text_model.encoder = torch.nn.Module()
        self.text_model.encoder.layers = torch.nn.ModuleList([layer])


@functools.cache
def modules() -> dict[str, Any]:
    """A UNet and a text encoder with the names of a few layers of real ones."""
    torch.manual_seed(0)
    return {"unet": _UNet(), "text_encoder": _TextEncoder()}


def prepare(folder: Path) -> None:
    modules()
    importlib.import_module("torch._dynamo")  # as PyTorch itself does later


def write(folder: Path, data: bytes) -> None:
    (folder / FILE).write_bytes(data)


@functools.cache
def graphs() -> Any:
    """What graphs of these modules take at run time."""
    shapes = {
        part: {
            name: LayerShape(name, each.weight.shape[1], len(each.weight), each.weight.shape[2:])
            for name, each in module.named_modules()
            if isinstance(each, torch.nn.Linear | torch.nn.Conv2d)
        }
        for part, module in modules().items()
    }
    return types.SimpleNamespace(
        shapes=shapes,
        configs=modules(),
        prediction_type="epsilon",
        widths={"text_encoder": 8},
    )


def run(folder: Path, data: bytes) -> None:
    parts = modules()
    with contextlib.suppress(CheckpointError):
        read_lora([LoraSource(folder / FILE, 1.0)], graphs())
    lora = Lora.open(folder / FILE, 0.5, parts)
    for part, layers in lora.layers.items():
        for name, layer in layers.items():
            layer.merge_into(parts[part].get_submodule(name), 0.5)


NAMES = (
    *(
        "lora_unet_conv_in",
        "lora_unet_mid_block_attentions_0_attn1_to_q",
        "unet.conv_in",
        "conv_in",
    ),
    *("unet.mid_block.attentions.0.attn1.to_k", "lora_te_text_model_encoder_layers_0_self_attn_q"),
    *("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "base_model.model.conv_in"),
)
ROLES = (
    *(
        "lora_down.weight",
        "lora_up.weight",
        "alpha",
        "lora_A.weight",
        "lora_B.weight",
        "dora_scale",
    ),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2", "diff"),
    *(
        "lokr_w1_a",
        "lokr_w2_b",
        "lokr_t2",
        "a1.weight",
        "oft_blocks",
        "on_input",
        "diff_b",
        "w_norm",
    ),
    *("lora_mid.weight", "lora_magnitude_vector", "lora_B.bias", "oft_diag", "weight", "scale"),
)
WORDS = (
    *(f"{name}.{role}" for name in NAMES for role in ROLES),
    *(
        "dtype",
        "shape",
        "data_offsets",
        "F32",
        "BF16",
        [2, 8],
        [8, 2],
        [8, 8],
        [8],
        [],
        [2, 4, 3, 3],
    ),
    *("lora_adapter_metadata", '{"unet.r": 2, "unet.lora_alpha": 1}', '{"r": 0, "lora_alpha": 1}'),
    *("ss_base_model_version", "modelspec.architecture", "sdxl", "ss_network_module", "bundle_emb"),
    *("bundle_emb.cat.string_to_param.*", [0, 64], [64, 128], [0, 4], [0, 256]),
)
TARGET = Target(
    "lora",
    run,
    names=(FILE,),
    prepare=prepare,
    write=write,
    mutate=mutators.safetensors(WORDS),
    errors=(CheckpointError,),
    longest=8192,
)
