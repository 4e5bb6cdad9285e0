"""Full-size adapters of SD 1.5 on disk: published architectures with seeded random weights.

    python -m benchmarks.adapter_checkpoints KIND FOLDER

KIND is controlnet, t2i_adapter, ip_adapter (ip_adapter.safetensors and its image_encoder/), or
safety_checker, which is added to the SD 1.5 checkpoint in FOLDER.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import NAMES, random_weight, write_json, write_weights
from sdexport.checkpoints.modules import empty
from sdexport.checkpoints.published_configs import FAMILIES

_CONTROLNET = {
    "_class_name": "ControlNetModel",
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
}
_T2I_ADAPTER = {
    "_class_name": "T2IAdapter",
    "adapter_type": "full_adapter",
    "channels": [320, 640, 1280, 1280],
    "downscale_factor": 8,
    "in_channels": 3,
    "num_res_blocks": 2,
}
_VIT_H = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "intermediate_size": 5120,
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
}
_VIT_L = {
    "hidden_size": 1024,
    "image_size": 224,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
_CHECKER = {"model_type": "clip", "projection_dim": 768, "vision_config": _VIT_L, "text_config": {}}
_TOKENS = 4


def write_controlnet(folder: Path, generator: Any) -> None:
    """A ControlNet as lllyasviel/control_v11p_sd15_canny."""
    _write_module(folder, _CONTROLNET, generator)


def write_t2i_adapter(folder: Path, generator: Any) -> None:
    """A T2I-Adapter as TencentARC/t2iadapter_canny_sd15v2."""
    _write_module(folder, _T2I_ADAPTER, generator)


def write_ip_adapter(folder: Path, generator: Any) -> None:
    """An IP-Adapter as ip-adapter_sd15.safetensors of h94/IP-Adapter, and its image encoder."""
    import torch
    import transformers
    from safetensors.torch import save_file

    encoder = folder / "image_encoder"
    write_json(encoder / "config.json", _VIT_H)
    with torch.device("meta"):
        config = transformers.CLIPVisionConfig.from_dict(_VIT_H)
        shapes = transformers.CLIPVisionModelWithProjection(config).state_dict()
    write_weights(encoder, shapes, generator, stem="model")
    published = next(family for family in FAMILIES if family.name == NAMES["sd15"])
    unet = empty("UNet2DConditionModel", published.unet)
    text, image = int(published.unet["cross_attention_dim"]), int(_VIT_H["projection_dim"])  # type: ignore[call-overload]
    sizes: dict[str, tuple[int, ...]] = {
        "image_proj.proj.weight": (_TOKENS * text, image),
        "image_proj.proj.bias": (_TOKENS * text,),
        "image_proj.norm.weight": (text,),
        "image_proj.norm.bias": (text,),
    }
    for number, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            rows = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for which in ("k", "v"):
                sizes[f"ip_adapter.{number}.to_{which}_ip.weight"] = (rows, text)
    weights = {
        name: random_weight(name, torch.empty(size, device="meta"), generator)
        for name, size in sizes.items()
    }
    save_file(weights, folder / "ip_adapter.safetensors", metadata={"format": "pt"})


def add_safety_checker(checkpoint: Path, generator: Any) -> None:
    """A safety checker as CompVis/stable-diffusion-safety-checker, in an SD 1.5 checkpoint."""
    folder, name = checkpoint / "safety_checker", "StableDiffusionSafetyChecker"
    write_json(folder / "config.json", _CHECKER)
    write_weights(folder, empty(name, _CHECKER).state_dict(), generator, stem="model")
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
    }
    write_json(checkpoint / "feature_extractor" / "preprocessor_config.json", preprocessor)
    index = checkpoint / "model_index.json"
    entries = {
        **json.loads(index.read_text(encoding="utf-8")),
        "safety_checker": ["stable_diffusion", name],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    index.unlink()  # which may be a link to that of another checkpoint
    write_json(index, entries)


def _write_module(folder: Path, config: Mapping[str, Any], generator: Any) -> None:
    write_json(folder / "config.json", config)
    write_weights(folder, empty(config["_class_name"], config).state_dict(), generator)


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "controlnet": write_controlnet,
    "t2i_adapter": write_t2i_adapter,
    "ip_adapter": write_ip_adapter,
    "safety_checker": add_safety_checker,
}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", choices=WRITERS)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    WRITERS[args.kind](args.folder, torch.Generator().manual_seed(0))


if __name__ == "__main__":
    main()
