"""A checkpoint in diffusers' layout: its index and configurations, without its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.demo_model import MODEL_DIR
from sdexport.engines.errors import CheckpointError
from tests.fuzz import mutators
from tests.fuzz.harness import Target
from tests.fuzz.targets import scheduler_config, tokenizer

FILES = {
    name: (MODEL_DIR / name).read_bytes()
    for name in (
        *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
        *("vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"),
    )
}
_changed: set[str] = set()


def prepare(folder: Path) -> None:
    """The demo model, with weights of nothing."""
    scheduler_config.known_keys()
    shutil.copytree(MODEL_DIR, folder / "model")
    for path in (folder / "model").rglob("*.safetensors"):
        path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    _changed.clear()


def write(folder: Path, data: bytes) -> None:
    found = {name: content for name, content in mutators.split(data).items() if name in FILES}
    for name in _changed:
        (folder / "model" / name).write_bytes(FILES[name])
    for name, content in found.items():
        (folder / "model" / name).write_bytes(content)
    _changed.clear()
    _changed.update(found)


def run(folder: Path, data: bytes) -> None:
    opened = Checkpoint.open(folder / "model")
    assert opened.family and opened.latent_space and opened.sample_size


WORDS = (
    *scheduler_config.WORDS,
    *("UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny", "StableDiffusionXLPipeline"),
    *("in_channels", "sample_size", "cross_attention_dim", "block_out_channels", "latent_channels"),
    *("scaling_factor", "shift_factor", "latents_mean", "addition_embed_type", "text_time", "silu"),
    *(
        "time_cond_proj_dim",
        "encoder_hid_dim_type",
        "class_embed_type",
        "num_class_embeds",
        "swish",
    ),
    *(
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "projection_dim",
        "max_position_embeddings",
    ),
    *(["diffusers", "UNet2DConditionModel"], [None, None], [64, 64], [8, 16, 16, 16], "quick_gelu"),
    *("_class_name", "_name_or_path", "quantization_config", "safety_checker", "image_encoder"),
)
TARGET = Target(
    "checkpoint",
    run,
    names=("model",),
    prepare=prepare,
    write=write,
    mutate=mutators.files(FILES, {".json": mutators.json_text((*WORDS, *tokenizer.WORDS))}),
    errors=(CheckpointError,),
    longest=16_384,
    random_inputs=40,
)
