"""Prompt embeddings in a .npz file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.array_files import read_arrays
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.files import atomic_write
from sdexport.engines.guarded_files import ARRAYS_LIMIT
from sdexport.engines.messages import one_line, shown

_META = "meta"
_ARRAYS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


@dataclass(frozen=True)
class PromptEmbeds:
    """Prompt embeddings, under the names of the pipeline's arguments.

    Attributes:
      prompt_embeds, negative_prompt_embeds: (B, S, width) float32.
      pooled_prompt_embeds, negative_pooled_prompt_embeds: (B, width) float32, for SDXL.
      meta: notes that JSON can represent, such as the prompt and the model.
    Raises: InvalidArgumentError: other dtypes or shapes; NaN, infinity or no values.
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
                raise InvalidArgumentError(
                    f"{name}: expected a float32 array of {dims} dimensions, got {shown(value)}"
                )
            if not value.size or not np.isfinite(value).all():
                raise InvalidArgumentError(
                    f"{name}: expected finite numbers, got NaN, infinity or no values"
                )
            like = self.prompt_embeds
            if (dims == 3 and value.shape[1:] != like.shape[1:]) or len(value) != len(like):
                raise InvalidArgumentError(
                    f"{name}: expected a shape that fits prompt_embeds {like.shape}, "
                    f"got {value.shape}"
                )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are not None, by name."""
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
    """Write prompt embeddings to a .npz file. An existing file is replaced; the write is atomic.

    Args:
      prompt_embeds, negative_prompt_embeds: (B, S, width) float32.
      pooled_prompt_embeds, negative_pooled_prompt_embeds: (B, width) float32, for SDXL.
      meta: notes that JSON can represent.
    Raises:
      InvalidArgumentError: arrays or notes of another kind; the name does not end in .npz.
      OSError: the file cannot be written.
    Example:
        >>> import numpy as np
        >>> from sdexport.runtime.text.embeds_file import load_embeds, save_embeds
        >>> save_embeds("prompt.npz", np.ones((1, 77, 768), np.float32), prompt="a red circle")
        >>> loaded = load_embeds("prompt.npz")
        >>> loaded.prompt_embeds.shape, loaded.meta
        ((1, 77, 768), {'prompt': 'a red circle'})
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InvalidArgumentError(
            f"embeddings: expected a file name that ends in .npz, got {shown(path.name)}"
        )
    embeds = PromptEmbeds(
        prompt_embeds,
        negative_prompt_embeds,
        pooled_prompt_embeds,
        negative_pooled_prompt_embeds,
    )
    try:
        text = json.dumps(meta, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"embeddings: JSON cannot represent the notes: {one_line(error)}"
        ) from None
    contents: dict[str, Any] = {**embeds.arrays(), _META: np.array(text)}
    with atomic_write(path) as file:
        np.savez(file, **contents)


def load_embeds(path: str | Path) -> PromptEmbeds:
    """Read a file that `save_embeds` wrote. The file is untrusted: Python objects are rejected.

    Raises:
      FileNotFoundError: there is no such file.
      InvalidArgumentError: the file is truncated, damaged or larger than ARRAYS_LIMIT, or holds
        something else than prompt embeddings.
    """
    path = Path(path)
    arrays = read_arrays(
        path, error=InvalidArgumentError, limit=ARRAYS_LIMIT, names=(*_ARRAYS, _META)
    )
    try:
        return _from_arrays(arrays)
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidArgumentError(
            f"{path} holds no valid prompt embeddings: {one_line(error)}"
        ) from error


def _from_arrays(arrays: dict[str, np.ndarray]) -> PromptEmbeds:
    if "prompt_embeds" not in arrays:
        raise ValueError("there are no prompt_embeds")
    meta = json.loads(str(arrays.pop(_META, "{}")))
    if not isinstance(meta, dict):
        raise ValueError("the notes are not a JSON object")
    return PromptEmbeds(**arrays, meta=meta)
