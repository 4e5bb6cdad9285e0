"""Small random checkpoints with T2I-Adapters and IP-Adapters that fit them."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sdexport.adapter_exporter import export_adapter
from sdexport.exporter import export
from sdexport.graphs.trace import trace
from tests.helpers.families import build

_SD1 = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
_SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 8 * 6,
    "use_linear_projection": True,
}
CHANNELS = (16, 32, 32)


def random_checkpoint(family: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint of a family, sd1 or sdxl, whose UNet has a random configuration of 3 levels."""
    choose = random.Random(seed)
    build(family, folder, seed)
    torch.manual_seed(seed)
    options: dict[str, Any] = dict(_SDXL if family == "sdxl" else _SD1)
    if family == "sdxl":
        options["transformer_layers_per_block"] = choose.choice([(1, 1, 2), (1, 2, 1), 1])
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=CHANNELS,
        layers_per_block=choose.choice([1, 2]),
        norm_num_groups=8,
        cross_attention_dim=80 if family == "sdxl" else 32,
        attention_head_dim=choose.choice([1, 2, 4]),
        **options,
    )
    with torch.no_grad():
        for key, weight in unet.named_parameters():
            if weight.ndim == 1 and "norm" in key and key.endswith("bias"):
                weight.normal_(std=0.1)
    unet.save_pretrained(folder / "unet")
    return folder


def random_t2i_adapter(kind: str, seed: int = 0, *, channels: int = 3) -> T2IAdapter:
    """A T2I-Adapter for such a checkpoint, of "full_adapter", "light_adapter" (SD 1) or
    "full_adapter_xl" (SDXL); "small" for those of tests.helpers.families."""
    torch.manual_seed(seed)
    widths = {"full_adapter": CHANNELS, "light_adapter": CHANNELS[:2], "small": CHANNELS[:2]}
    of_xl = kind in ("full_adapter_xl", "small")
    adapter = T2IAdapter(
        in_channels=channels,
        channels=list(widths.get(kind, (*CHANNELS, CHANNELS[-1]))),
        num_res_blocks=1 + seed % 2,
        downscale_factor=16 if of_xl else 8,
        adapter_type="full_adapter_xl" if of_xl else kind,
    )
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if weight.ndim > 1:
                weight.mul_(2 if "conv_in" in name or "out_conv" in name else 1)
    return adapter.eval()


def random_image_encoder(folder: Path, seed: int = 0) -> CLIPVisionModelWithProjection:
    """A CLIP image encoder for images of 28 by 28, written to a folder."""
    torch.manual_seed(seed)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=7,
            projection_dim=24,
        )
    )
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    encoder.save_pretrained(folder)
    return encoder.eval()


def random_ip_adapter(
    kind: str, unet: UNet2DConditionModel, path: Path, seed: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    """An IP-Adapter in a file, of kind "base", "plus" or "full"; the weights as diffusers takes
    them."""
    generator = torch.Generator().manual_seed(seed)
    width = unet.config["cross_attention_dim"]
    state = {"image_proj": _projection(kind, width, seed), "ip_adapter": {}}
    number = 1
    for name in unet.attn_processors:
        if "attn2" in name:
            rows = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for which in ("k", "v"):
                weight = torch.randn(rows, width, generator=generator) / width**0.5
                state["ip_adapter"][f"{number}.to_{which}_ip.weight"] = weight
            number += 2
    flat = {f"{group}.{key}": v for group, each in state.items() for key, v in each.items()}
    save_file({key: value.contiguous() for key, value in flat.items()}, path)
    return state


def _projection(kind: str, width: int, seed: int) -> dict[str, torch.Tensor]:
    """The weights of an image projection, under the names of IP-Adapter's own files."""
    torch.manual_seed(seed)
    if kind == "base":
        module: Any = ImageProjection(24, width, num_image_text_embeds=4)
        return {k.replace("image_embeds", "proj"): v for k, v in module.state_dict().items()}
    if kind == "full":
        module = IPAdapterFullImageProjection(32, width)
        names = {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "proj.3"}
        return {
            new + key.removeprefix(old): value
            for key, value in module.state_dict().items()
            for old, new in names.items()
            if key.startswith(old)
        }
    module = IPAdapterPlusImageProjection(
        embed_dims=32, output_dims=width, hidden_dims=64, heads=1, num_queries=6
    )
    return _plus_names(module.state_dict())


def _plus_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names of the resampler, and those of IP-Adapter's files."""
    names = {
        "ln0": "0.norm1",
        "ln1": "0.norm2",
        "attn.to_q": "0.to_q",
        "attn.to_out.0": "0.to_out",
        "ff.0": "1.0",
        "ff.1.net.0.proj": "1.1",
        "ff.1.net.2": "1.3",
    }
    found = {}
    for key, value in state.items():
        if not key.startswith("layers."):
            found[key] = value
            continue
        start, layer, rest = key.split(".", 2)
        if rest == "attn.to_k.weight":
            both = torch.cat([value, state[key.replace("to_k", "to_v")]])
            found[f"{start}.{layer}.0.to_kv.weight"] = both
        for old, new in names.items():
            if rest.startswith(old):
                found[f"{start}.{layer}.{new}{rest.removeprefix(old)}"] = value
    return found


def make_folder(lora_folder: Path, folder: Path) -> None:
    """The package of a checkpoint with graphs for image adapters, and adapters that fit it.

    Args:
      lora_folder: with the checkpoint and its package, whose other graphs are taken.
      folder: gets package/, t2i/, base/ and plus/, and the sources of the adapters.
    """
    folder.mkdir()
    checkpoint = lora_folder / "checkpoint"
    with (
        mock.patch("sdexport.exporter.trace", partial(_traced, lora_folder / "package")),
        mock.patch("sdexport.exporter.verifying_backend", lambda _: None),
        mock.patch("sdexport.adapter_exporter.verifying_backend", lambda _: None),
    ):
        export(checkpoint, folder / "package", t2i_adapter_inputs=True, ip_adapter_inputs=True)
        random_t2i_adapter("small").save_pretrained(folder / "t2i-source")
        export_adapter(folder / "t2i-source", folder / "t2i")
        random_image_encoder(folder / "image_encoder")
        unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
        for kind in ("base", "plus"):
            random_ip_adapter(kind, unet, folder / f"{kind}.safetensors")
            export_adapter(folder / f"{kind}.safetensors", folder / kind)


def _traced(package: Path, part: Any, module: Any, path: Path, **arguments: Any) -> Any:
    """Trace the UNet; take the other graphs from a package of the same checkpoint."""
    if part.name == "unet":
        return trace(part, module, path, **arguments)
    path.parent.mkdir(parents=True)
    for source in sorted((package / part.name).glob("model.onnx*")):
        shutil.copyfile(source, path.with_name(source.name))
    return ()
