"""Files of weights: .safetensors, and pickles that are read for their weights alone."""

from __future__ import annotations

from pathlib import Path

from sdexport.checkpoints.embedding_file import words_of
from sdexport.checkpoints.header_entries import warn_about_unknown
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError
from tests.fuzz import mutators
from tests.fuzz.harness import Target

FILE = "weights.safetensors"


def write(folder: Path, data: bytes) -> None:
    (folder / FILE).write_bytes(data)


def run(folder: Path, data: bytes) -> None:
    """The file as weights, and as the words of a textual inversion."""
    file = WeightFile.open(folder / FILE, allow_pickle=True)
    assert file.kind
    warn_about_unknown(file.path, file.metadata)
    _ = file.named_weights
    file.sha256()
    for word in words_of(file, {"text_encoder": 4, "text_encoder_2": 8}):
        assert word.vectors


WORDS = (
    *("dtype", "shape", "data_offsets", "__metadata__", "F32", "F16", "BF16", "F8_E4M3", "I64"),
    *("clip_l", "clip_g", "emb_params", "string_to_param", "*", "text_encoders_0", "x_out", "BOOL"),
    *("a.weight", "a.scale_weight", "scaled_fp8", "a.comfy_quant", "_quantization_metadata"),
    *("lora_down.weight", "model.diffusion_model.a", [0, 16], [1, 4], [2**62, 4], "format", "pt"),
)
TARGET = Target(
    "weight_file",
    run,
    names=(FILE,),
    write=write,
    mutate=mutators.safetensors(WORDS),
    errors=(CheckpointError,),
)
