"""The models of `benchmarks.gpu`: published architectures with seeded random weights, as packages.

    tiny    the demo model      sd15    Stable Diffusion 1.5      sdxl    Stable Diffusion XL

Nothing is downloaded, so a machine without a network can measure real shapes and cost; the images
are meaningless. The tokenizer is that of the demo model, whose ids are valid in every vocabulary.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.diffusers_layout import tokenizer_folder
from sdexport.checkpoints.published_configs import FAMILIES
from sdexport.demo_model import MODEL_DIR
from sdexport.exporter import DEFAULT_OPSET
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
      sides, batches: of the UNet's inputs; a batch counts both halves of the guidance.
      steps: of whole images.
      family: see published_configs.py; None for the demo model.
    """

    name: str
    side: int
    sides: tuple[int, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    scheduler: str
    family: str | None = None
    guidance_scale: float = field(default=7.5)


MODELS = {
    "tiny": Model("tiny", 128, (64, 128), (1, 2), (1, 4), "ddim"),
    "sd15": Model(
        "sd15", 512, (512, 768, 1024), (1, 2, 4, 8), (1, 4, 20, 50), "ddim", "Stable Diffusion 1"
    ),
    "sdxl": Model(
        "sdxl", 1024, (512, 768, 1024), (1, 2, 4, 8), (1, 4, 20, 50), "euler", "Stable Diffusion XL"
    ),
}


def checkpoint(model: Model, folder: Path) -> Checkpoint:
    """The model as a checkpoint whose modules are created when they are loaded.

    Args:
      folder: the configurations are written here.
    """
    if model.family is None:
        return Checkpoint.open(MODEL_DIR)
    from diffusers import AutoencoderKL, UNet2DConditionModel

    family = next(f for f in FAMILIES if f.name == model.family)
    configs: dict[str, Any] = {"unet": family.unet, "vae": family.vae}
    index: dict[str, Any] = {"_class_name": family.pipeline, **family.index}
    index |= {
        "scheduler": ["diffusers", family.scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, layout in family.text_encoders.items():
        configs[name] = layout.config
        index[name] = ["transformers", layout.class_name]
        index[tokenizer_folder(name)] = ["transformers", "CLIPTokenizer"]
        shutil.copytree(
            MODEL_DIR / "tokenizer", folder / tokenizer_folder(name), dirs_exist_ok=True
        )
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


def write_package(
    source: Checkpoint, folder: Path, *, half: bool, only: tuple[str, ...] = ()
) -> None:
    """Trace a checkpoint's components into a package without reference outputs.

    `sdexport export` would compute those with PyTorch on the CPU; here PyTorch runs on the GPU.

    Args:
      half: precision fp16, see sdexport.graphs.precision; else float32.
      only: these components; by default all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("scheduler", *map(tokenizer_folder, source.text_encoders)):
        shutil.copytree(source.folder / name, folder / name)
    shutil.copyfile(source.folder / "model_index.json", folder / "model_index.json")
    components = {}
    loaded: tuple[str, Any] = ("", None)
    for part in parts(source.configs):
        if only and part.name not in only:
            continue
        if loaded[0] != part.source:
            loaded = part.source, source.load(part.source)
        components[part.name] = _traced(source, part, loaded[1], folder, half=half)
        shutil.copyfile(
            source.folder / part.source / "config.json", folder / part.name / "config.json"
        )
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
