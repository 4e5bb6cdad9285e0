"""Full-size checkpoints on disk: published architectures with seeded random weights.

    python -m benchmarks.checkpoints FAMILY FOLDER --tokenizer DIR [--half]

Shapes and cost are real; the images are meaningless. Files are written one shard at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdexport.checkpoints.diffusers_layout import tokenizer_folder
from sdexport.checkpoints.modules import empty
from sdexport.checkpoints.published_configs import FAMILIES

NAMES = {
    "sd15": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "refiner": "Stable Diffusion XL refiner",
}
SHARD = 2_000_000_000
"""Bytes of float32 weights in one file."""


def build_checkpoint(
    folder: Path,
    tokenizer: Path,
    family: str = "sd15",
    *,
    half: bool = False,
    smaller: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> None:
    """Write a diffusers folder.

    Args:
      tokenizer: folder with CLIP's own files.
      family: one of NAMES.
      half: store weights in float16.
      smaller: changes to the configuration of a component.
    """
    import torch

    published = next(f for f in FAMILIES if f.name == NAMES[family])
    index: dict[str, Any] = {"_class_name": published.pipeline, **published.index}
    index["scheduler"] = ["diffusers", published.scheduler["_class_name"]]
    modules: dict[str, tuple[str, Any]] = {
        "unet": ("UNet2DConditionModel", published.unet),
        "vae": ("AutoencoderKL", published.vae),
    }
    for part, layout in published.text_encoders.items():
        modules[part] = layout.class_name, layout.config
        index[tokenizer_folder(part)] = ["transformers", "CLIPTokenizer"]
        shutil.copytree(tokenizer, folder / tokenizer_folder(part))
    generator = torch.Generator().manual_seed(seed)
    for part, (class_name, published_config) in modules.items():
        config = published_config | (smaller or {}).get(part, {})
        index[part] = ["transformers" if "text" in part else "diffusers", class_name]
        write_json(folder / part / "config.json", config)
        shapes = empty(class_name, config).state_dict()
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        write_weights(folder / part, shapes, generator, half=half, stem=stem)
    write_json(folder / "scheduler" / "scheduler_config.json", published.scheduler)
    write_json(folder / "model_index.json", index)


def write_weights(
    folder: Path,
    shapes: dict[str, Any],
    generator: Any,
    *,
    half: bool = False,
    stem: str = "diffusion_pytorch_model",
) -> None:
    """Write random weights of these shapes to `stem`.safetensors, or to several such files."""
    from safetensors.torch import save_file

    shards, places = list(_shards(shapes)), {}
    for number, names in enumerate(shards, 1):
        ending = "" if len(shards) == 1 else f"-{number:05}-of-{len(shards):05}"
        file = folder / f"{stem}{ending}.safetensors"
        tensors = {name: random_weight(name, shapes[name], generator) for name in names}
        weights = {k: v.half() if half else v for k, v in tensors.items()}
        save_file(weights, file, metadata={"format": "pt"})  # required by older transformers
        places |= dict.fromkeys(names, file.name)
    if len(shards) > 1:
        total = sum(value.numel() for value in shapes.values()) * (2 if half else 4)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _shards(shapes: dict[str, Any]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, value in shapes.items():
        if size + 4 * value.numel() > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += 4 * value.numel()
    yield names


def random_weight(name: str, like: Any, generator: Any) -> Any:
    """Values as at the start of training, so that activations keep their scale."""
    import torch

    value = torch.empty(like.shape)
    if like.ndim > 1:
        bound = math.sqrt(like.shape[0] / like.numel())
        return value.uniform_(-bound, bound, generator=generator)
    if name.endswith("weight"):
        return value.fill_(1)
    return value.uniform_(-0.02, 0.02, generator=generator)


def write_json(path: Path, value: object) -> None:
    """Write a configuration; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.checkpoints")
    parser.add_argument("family", choices=NAMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with CLIP's own files"
    )
    parser.add_argument("--half", action="store_true", help="weights in float16")
    args = parser.parse_args()
    build_checkpoint(args.folder, args.tokenizer, args.family, half=args.half)


if __name__ == "__main__":
    main()
