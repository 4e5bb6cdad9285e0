"""The models that are timed: checkpoints and packages, created once in the work folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdexport.demo_model import MODEL_DIR


@dataclass(frozen=True)
class Model:
    """A model that is timed.

    Attributes:
      checkpoint: a diffusers folder.
      package: the export of it.
      sizes: width and height of its images, in pixels.
      whole_images: whether whole images are timed, not only components.
    """

    name: str
    checkpoint: Path
    package: Path
    sizes: tuple[int, ...]
    whole_images: bool = True

    @property
    def weights_gb(self) -> float:
        return sum(f.stat().st_size for f in self.checkpoint.rglob("*.safetensors")) / 1e9


def demo_model(folder: Path, tokenizer: Path | None = None) -> None:
    shutil.copytree(MODEL_DIR, folder)
    _published_names(folder / "text_encoder" / "model.safetensors")


def sd15(folder: Path, tokenizer: Path | None = None) -> None:
    from benchmarks.checkpoints import build_checkpoint

    build_checkpoint(folder, tokenizer or MODEL_DIR / "tokenizer")
    _published_names(folder / "text_encoder" / "model.safetensors")
    _one_file(folder / "unet")


def sdxl_unet(folder: Path, tokenizer: Path | None = None) -> None:
    """SDXL with its UNet at full size, text encoders of two layers and a small VAE."""
    from benchmarks.checkpoints import build_checkpoint

    text = {"num_hidden_layers": 2, "intermediate_size": 64}
    vae = {"block_out_channels": (16, 16, 16, 16), "norm_num_groups": 4}
    smaller = {"text_encoder": text, "text_encoder_2": text, "vae": vae}
    build_checkpoint(folder, tokenizer or MODEL_DIR / "tokenizer", "sdxl", smaller=smaller)


KINDS: dict[str, tuple[Callable[..., None], tuple[int, ...], bool]] = {
    "embedded": (demo_model, (128,), True),
    "sd15": (sd15, (256, 512), True),
    "sdxl-unet": (sdxl_unet, (512,), False),
}
"""Name -> function that writes the checkpoint, sizes, whether whole images are timed.

The demo model is called "embedded", as in the reports."""


def made(name: str, work: Path, tokenizer: Path | None = None) -> Model:
    """The model of that name; created in the work folder if it is not there yet.

    Raises: ValueError: no such model. RuntimeError: the export failed.
    """
    if name not in KINDS:
        raise ValueError(f"no model '{name}'; choose among {', '.join(KINDS)}")
    build, sizes, whole_images = KINDS[name]
    model = Model(name, work / name / "checkpoint", work / name / "package", sizes, whole_images)
    if not model.checkpoint.exists():
        partial = model.checkpoint.with_name("checkpoint.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        build(partial, tokenizer)
        _explicit_spacing(partial / "scheduler" / "scheduler_config.json")
        partial.rename(model.checkpoint)
    if not model.package.exists():  # in its own process, to free its memory
        command = [sys.executable, "-m", "sdexport", "export", model.checkpoint, model.package]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"exporting {name} failed: {done.stderr[-500:]}")
    return model


def _published_names(path: Path) -> None:
    """Rename a text encoder's weights as in published checkpoints; older libraries require it."""
    from safetensors.torch import load_file, save_file

    weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def _one_file(folder: Path) -> None:
    """Merge the shards of a model, as published; stable-diffusion.cpp reads no shards."""
    from safetensors.torch import load_file, save_file

    index = next(folder.glob("*.safetensors.index.json"), None)
    if index is None:
        return
    shards = sorted(folder.glob("*-of-*.safetensors"))
    weights = {name: value for shard in shards for name, value in load_file(shard).items()}
    whole = folder / index.name.removesuffix(".index.json")
    save_file(weights, whole, metadata={"format": "pt"})
    for path in (*shards, index):
        path.unlink()


def _explicit_spacing(path: Path) -> None:
    """Write the default out, because every library has another one."""
    values = json.loads(path.read_text(encoding="utf-8"))
    _write(path, values | {"timestep_spacing": "leading"})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
