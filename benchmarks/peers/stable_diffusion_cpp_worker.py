"""Prepares a checkpoint for stable-diffusion.cpp: `python WORKER prepare CHECKPOINT FOLDER`.

cyllama takes one file and no folder. The file has the names that stable-diffusion.cpp gives the
weights of a folder of diffusers.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

FILES = {
    "unet.": "unet/diffusion_pytorch_model.safetensors",
    "vae.": "vae/diffusion_pytorch_model.safetensors",
    "te.": "text_encoder/model.safetensors",
}
NAME = "model.safetensors"


def prepare(checkpoint: Path, folder: Path) -> None:
    """Write the weights of all files into one, in the same order."""
    header: dict[str, Any] = {}
    parts, end = [], 0
    for prefix, name in FILES.items():
        path = checkpoint / name
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        for key, entry in entries.items():
            offsets = [end + offset for offset in entry["data_offsets"]]
            header[prefix + key] = {**entry, "data_offsets": offsets}
        parts.append((path, 8 + length))
        end += path.stat().st_size - 8 - length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("wb") as whole:
        whole.write(struct.pack("<Q", len(text)) + text)
        for path, start in parts:
            with path.open("rb") as file:
                file.seek(start)
                shutil.copyfileobj(file, whole, 1 << 24)


if __name__ == "__main__":
    prepare(Path(sys.argv[2]), Path(sys.argv[3]))
