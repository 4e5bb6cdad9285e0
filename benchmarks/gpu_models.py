"""The models of `benchmarks.gpu`: published architectures with seeded random weights, as packages.

    demo    the demo model      sd15    Stable Diffusion 1.5      sdxl    Stable Diffusion XL

Nothing is downloaded, so a machine without a network can measure real shapes and cost; the images
are meaningless. The tokenizer is that of the demo model, whose ids are valid in every vocabulary.
A dry run has the same architectures with few channels and layers.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.diffusers_layout import tokenizer_folder
from sdexport.checkpoints.published_configs import FAMILIES
from sdexport.demo_model import MODEL_DIR
from sdexport.export_steps import DEFAULT_OPSET
from sdexport.graphs.precision import conversion
from sdexport.graphs.trace import trace
from sdexport.graphs.wrappers import Part, parts
from sdexport.package_writer import describe, describe_component, write
from sdexport.runtime.packages.manifest import ComponentRecord

SEED = 0


@dataclass(frozen=True)
class Model:
    """A model and the sizes to measure.

    Attributes:
      side: width and height of images, in pixels.
      sides, batches: of the UNet's inputs; a batch counts both halves of the guidance. The first
        ones are measured by default.
      steps: of whole images; those of the goal first.
      scheduler: name of ours.
      family: see published_configs.py; None for the demo model.
      small: few channels and layers, for a dry run.
    """

    name: str
    side: int
    sides: tuple[int, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    scheduler: str
    family: str | None = None
    guidance_scale: float = 7.5
    small: bool = False


SD1, SDXL = "Stable Diffusion 1", "Stable Diffusion XL"
MODELS = {
    "demo": Model("demo", 128, (128, 64), (2, 1), (20,), "ddim"),
    "sd15": Model("sd15", 512, (512, 768, 1024), (2, 1, 4, 8), (50, 20), "ddim", SD1),
    "sdxl": Model("sdxl", 1024, (1024, 768, 512), (2, 1, 4), (30,), "euler", SDXL),
}


def dry_model(name: str) -> Model:
    """The small model that stands for one of MODELS on a CPU."""
    full = MODELS[name]
    sides = full.sides if name == "demo" else (64, 128)
    return replace(full, side=sides[0], sides=sides, batches=(2, 1), steps=(2,), small=True)


def checkpoint(model: Model, folder: Path) -> Checkpoint:
    """The model as a checkpoint whose modules are created when they are loaded.

    Args:
      folder: the configurations are written here.
    """
    if model.family is None:
        return Checkpoint.open(MODEL_DIR)
    from diffusers import AutoencoderKL, UNet2DConditionModel

    family = next(f for f in FAMILIES if f.name == model.family)
    configs: dict[str, Any] = {"unet": dict(family.unet), "vae": dict(family.vae)}
    index: dict[str, Any] = {"_class_name": family.pipeline, **family.index}
    index |= {
        "scheduler": ["diffusers", family.scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, layout in family.text_encoders.items():
        configs[name] = dict(layout.config)
        index[name] = ["transformers", layout.class_name]
        index[tokenizer_folder(name)] = ["transformers", "CLIPTokenizer"]
        shutil.copytree(
            MODEL_DIR / "tokenizer", folder / tokenizer_folder(name), dirs_exist_ok=True
        )
    if model.small:
        _shrink(configs)
    _write_json(folder / "model_index.json", index)
    _write_json(folder / "scheduler" / "scheduler_config.json", family.scheduler)
    for name, config in configs.items():
        _write_json(folder / name / "config.json", config)

    def load(part: str) -> Any:
        import torch
        import transformers

        torch.manual_seed(SEED)
        if part == "unet":
            return UNet2DConditionModel.from_config(configs[part])
        if part == "vae":
            return AutoencoderKL.from_config(configs[part])
        return getattr(transformers, index[part][1])(transformers.CLIPTextConfig(**configs[part]))

    origin = {"type": "random", "architecture": model.family}
    return Checkpoint.open(folder, loader=load, origin=origin, label=model.name)


def with_weights(model: Model, folder: Path) -> Checkpoint:
    """The model as a checkpoint whose folder holds float16 weights, which are written if need be.

    Every task reads the same weights, in seconds; a process that drew them would take longer.
    """
    if model.family is None:
        return Checkpoint.open(MODEL_DIR)
    marker = folder / "complete"
    if not marker.exists():
        from safetensors.torch import save_file

        source = checkpoint(model, folder)
        for part in ("unet", "vae", *source.text_encoders):
            prefix = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
            state = source.load(part).half().state_dict()
            state = {key: value.contiguous() for key, value in state.items()}
            save_file(state, folder / part / f"{prefix}.safetensors")
        marker.touch()
    origin = {"type": "random", "architecture": model.family}  # no digest of gigabytes
    return Checkpoint.open(folder, origin=origin, label=model.name)


def _shrink(configs: dict[str, Any]) -> None:
    """Few channels and layers, the same blocks and conditioning."""
    for name, config in configs.items():
        if name.startswith("text_encoder"):
            config |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
            config |= {"num_attention_heads": 4, "projection_dim": 32}
        else:
            blocks = len(config["block_out_channels"])
            config |= {"block_out_channels": [32] * blocks, "layers_per_block": 1}
    unet, encoders = configs["unet"], sum(name.startswith("text_encoder") for name in configs)
    unet |= {"cross_attention_dim": 32 * encoders, "attention_head_dim": 4}
    if "transformer_layers_per_block" in unet:
        unet["transformer_layers_per_block"] = 1
        time_ids = 6 * unet["addition_time_embed_dim"]
        unet["projection_class_embeddings_input_dim"] = time_ids + 32


def write_package(
    source: Checkpoint,
    folder: Path,
    *,
    half: bool,
    on_part: Callable[[str, float], object] = lambda name, seconds: None,
) -> None:
    """Trace a checkpoint's components into a package without reference outputs.

    `sdexport export` would compute those with PyTorch on the CPU; here PyTorch runs on the GPU.

    Args:
      half: precision fp16, see sdexport.graphs.precision; else float32.
      on_part: called with each component's name and the seconds that it took.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("scheduler", *map(tokenizer_folder, source.text_encoders)):
        shutil.copytree(source.folder / name, folder / name)
    shutil.copyfile(source.folder / "model_index.json", folder / "model_index.json")
    components = {}
    loaded: tuple[str, Any] = ("", None)
    for part in parts(source.configs):
        started = time.perf_counter()
        if loaded[0] != part.source:
            loaded = part.source, source.load(part.source)
        components[part.name] = _traced(source, part, loaded[1], folder, half=half)
        shutil.copyfile(
            source.folder / part.source / "config.json", folder / part.name / "config.json"
        )
        on_part(part.name, time.perf_counter() - started)
    write(describe(source, folder, components, tools={}), folder)


def _traced(
    source: Checkpoint, part: Part, module: Any, folder: Path, *, half: bool
) -> ComponentRecord:
    path = folder / part.name / "model.onnx"
    change = conversion(
        "fp16" if half else "fp32", part.component, source.family, source.configs[part.source]
    )
    trace(part, module, path, opset=DEFAULT_OPSET, change=change)
    return describe_component(folder, part, change, DEFAULT_OPSET)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
