"""Embeddings of prompts in a .npz file: written whole, read with suspicion."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.files import atomic_write
from sdexport.engines.messages import one_line

MAX_FILE_BYTES = 2**30
_META = "meta"
_ARRAYS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


@dataclass(frozen=True)
class PromptEmbeds:
    """What a file of embeddings holds.

    prompt_embeds, negative_prompt_embeds: (B, S, width) float32.
    pooled_prompt_embeds, negative_pooled_prompt_embeds: (B, width) float32, for SDXL.
    meta: what was noted with them, such as the prompt and the model.
    """

    prompt_embeds: np.ndarray
    negative_prompt_embeds: np.ndarray | None = None
    pooled_prompt_embeds: np.ndarray | None = None
    negative_pooled_prompt_embeds: np.ndarray | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.arrays().items():
            dims = 2 if "pooled" in name else 3
            if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != dims:
                got = f"{getattr(value, 'dtype', type(value).__name__)} {np.shape(value)}"
                raise ValueError(f"{name}: expected float32 of {dims} dimensions, got {got}")
            if not value.size or not np.isfinite(value).all():
                raise ValueError(f"{name}: expected finite numbers, got NaN, infinity or none")
            like = self.prompt_embeds
            if (dims == 3 and value.shape[1:] != like.shape[1:]) or len(value) != len(like):
                raise ValueError(
                    f"{name}: expected a shape that fits prompt_embeds {like.shape}, "
                    f"got {value.shape}"
                )

    def arrays(self) -> dict[str, np.ndarray]:
        """Name and array of each that is there."""
        return {
            name: value
            for name in _ARRAYS
            if (value := getattr(self, name)) is not None or name == "prompt_embeds"
        }


def save_embeds(
    path: str | Path,
    prompt_embeds: np.ndarray,
    negative_prompt_embeds: np.ndarray | None = None,
    *,
    pooled_prompt_embeds: np.ndarray | None = None,
    negative_pooled_prompt_embeds: np.ndarray | None = None,
    **meta: Any,
) -> None:
    """Write embeddings to a .npz file, whole or not at all; a file that is there is replaced.

    Args:
      arrays: see PromptEmbeds. meta: anything that JSON can hold.
    Raises: ValueError: arrays or meta do not fit; the name does not end in .npz. OSError.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"embeddings: expected a file name ending in .npz, got '{path.name}'")
    embeds = PromptEmbeds(
        prompt_embeds,
        negative_prompt_embeds,
        pooled_prompt_embeds,
        negative_pooled_prompt_embeds,
    )
    try:
        text = json.dumps(meta, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"embeddings: the notes are nothing that JSON can hold: {error}") from None
    contents: dict[str, Any] = {**embeds.arrays(), _META: np.array(text)}
    with atomic_write(path) as file:
        np.savez(file, **contents)


def load_embeds(path: str | Path) -> PromptEmbeds:
    """Read a file that `save_embeds` wrote; nothing in it is trusted.

    Raises: FileNotFoundError. ValueError: the file is cut off, damaged or too large, holds Python
      objects, or arrays that are no embeddings.
    """
    path = Path(path)
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files if name in (*_ARRAYS, _META)}
        if "prompt_embeds" not in held:
            raise ValueError("it has no prompt_embeds")
        meta = json.loads(str(held.pop(_META, "{}")))
        if not isinstance(meta, dict):
            raise ValueError("its notes are no JSON object")
        return PromptEmbeds(**held, meta=meta)
    except (
        ValueError,
        TypeError,
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        message = one_line(error)
        raise ValueError(f"{path}: no file of embeddings: {message}") from None


def _check_sizes(path: Path) -> None:
    """Nothing is as large as to fill the memory, in truth or by its own account."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{size} bytes are more than {MAX_FILE_BYTES}")
        for entry in archive.infolist():
            with archive.open(entry) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError(f"{entry.filename} is no array that save_embeds writes")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} is cut off")
