"""What is timed: checkpoints and packages, made once under the work folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdexport.shapes import MODEL_DIR


@dataclass(frozen=True)
class Model:
    """checkpoint: a diffusers folder; package: our export of it; sizes: sides of its pictures."""

    name: str
    checkpoint: Path
    package: Path
    sizes: tuple[int, ...]
    pictures: bool = True

    @property
    def weights_gb(self) -> float:
        return sum(f.stat().st_size for f in self.checkpoint.rglob("*.safetensors")) / 1e9


def embedded(folder: Path, tokenizer: Path | None = None) -> None:
    shutil.copytree(MODEL_DIR, folder)
    _published_names(folder / "text_encoder" / "model.safetensors")


def sd15(folder: Path, tokenizer: Path | None = None) -> None:
    from benchmarks.full_size import build_checkpoint

    build_checkpoint(folder, tokenizer or MODEL_DIR / "tokenizer")
    _published_names(folder / "text_encoder" / "model.safetensors")


def sdxl_unet(folder: Path, tokenizer: Path | None = None) -> None:
    """SDXL with its UNet at full size, beside text encoders of one layer and a small VAE."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from benchmarks.full_size import SCHEDULER, TEXT_ENCODER, VAE

    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "intermediate_size": 64}
    second = {"hidden_size": 1280, "projection_dim": 1280, "num_attention_heads": 20}
    modules = {
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER | small)),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(
            CLIPTextConfig(**TEXT_ENCODER | small | second)
        ),
        "vae": lambda: AutoencoderKL(
            **VAE | {"block_out_channels": (16, 16, 16, 16), "norm_num_groups": 4}
        ),
        "unet": lambda: UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        ),
    }
    index: dict[str, object] = {"_class_name": "StableDiffusionXLPipeline"}
    for name, build in modules.items():
        module = build()
        index[name] = [type(module).__module__.split(".")[0], type(module).__name__]
        module.save_pretrained(folder / name)
        del module
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tokenizer or MODEL_DIR / "tokenizer", folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    index |= {"scheduler": ["diffusers", "PNDMScheduler"], "force_zeros_for_empty_prompt": True}
    (folder / "scheduler").mkdir()
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write(folder / "model_index.json", index)


KINDS: dict[str, tuple[Callable[..., None], tuple[int, ...], bool]] = {
    "embedded": (embedded, (128,), True),
    "sd15": (sd15, (256, 512), True),
    "sdxl-unet": (sdxl_unet, (512,), False),
}
"""Name -> what makes the checkpoint, sides of pictures, whether whole pictures are timed."""


def made(name: str, work: Path, tokenizer: Path | None = None) -> Model:
    """The model of that name, from the work folder if it is there.

    Raises: ValueError: no such model. RuntimeError: the export failed.
    """
    if name not in KINDS:
        raise ValueError(f"no model '{name}'; choose among {', '.join(KINDS)}")
    build, sizes, pictures = KINDS[name]
    model = Model(name, work / name / "checkpoint", work / name / "package", sizes, pictures)
    if not model.checkpoint.exists():
        partial = model.checkpoint.with_name("checkpoint.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        build(partial, tokenizer)
        _explicit_spacing(partial / "scheduler" / "scheduler_config.json")
        partial.rename(model.checkpoint)
    if not model.package.exists():  # in a process of its own: its memory goes with it
        command = [sys.executable, "-m", "sdexport", "export", model.checkpoint, model.package]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"exporting {name} failed: {done.stderr[-500:]}")
    return model


def _published_names(path: Path) -> None:
    """Name a text encoder's weights as published checkpoints do; older libraries know no others."""
    from safetensors.torch import load_file, save_file

    weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def _explicit_spacing(path: Path) -> None:
    """Say what is the default, since every library has its own."""
    values = json.loads(path.read_text(encoding="utf-8"))
    _write(path, values | {"timestep_spacing": "leading"})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
