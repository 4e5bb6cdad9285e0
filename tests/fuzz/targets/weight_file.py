"""Files of weights: .safetensors, and pickles that are read for their weights alone."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

from sdexport.checkpoints.embedding_file import words_of
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.adapters.header_entries import warn_about_unknown
from tests.fuzz import mutators
from tests.fuzz.harness import Target

SAFETENSORS, PICKLE = "weights.safetensors", "weights.pt"


def name_of(data: bytes) -> str:
    """PyTorch goes by the name."""
    return PICKLE if data.startswith((b"PK", b"\x80")) else SAFETENSORS


def prepare(folder: Path) -> None:
    importlib.import_module("torch._dynamo")  # as PyTorch itself does later


def write(folder: Path, data: bytes) -> None:
    (folder / name_of(data)).write_bytes(data)


def run(folder: Path, data: bytes) -> None:
    """The file as weights, and as the words of a textual inversion."""
    file = WeightFile.open(folder / name_of(data), allow_pickle=True)
    assert file.kind
    warn_about_unknown(file.path, file.metadata)
    _ = file.named_weights
    file.sha256()
    for word in words_of(file, {"text_encoder": 4, "text_encoder_2": 8}):
        assert word.vectors


def mutate(data: bytes, rng: random.Random) -> bytes:
    if data.startswith(b"PK"):
        return mutators.zip_file(data, rng)
    return (mutators.binary if data.startswith(b"\x80") else _SAFETENSORS)(data, rng)


WORDS = (
    *("dtype", "shape", "data_offsets", "__metadata__", "F32", "F16", "BF16", "F8_E4M3", "I64"),
    *("clip_l", "clip_g", "emb_params", "string_to_param", "*", "text_encoders_0", "x_out", "BOOL"),
    *("a.weight", "a.scale_weight", "scaled_fp8", "a.comfy_quant", "_quantization_metadata"),
    *("lora_down.weight", "model.diffusion_model.a", [0, 16], [1, 4], [2**62, 4], "format", "pt"),
)
_SAFETENSORS = mutators.safetensors(WORDS)
TARGET = Target(
    "weight_file",
    run,
    names=(SAFETENSORS, PICKLE),
    prepare=prepare,
    write=write,
    mutate=mutate,
    errors=(CheckpointError,),
)
