"""The words that are bundled with a LoRA file, and their vectors for each text encoder.

Source: the `bundle_emb` weights of kohya-format files; Gal et al. 2022, arXiv 2208.01618.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from sdexport.engines.messages import shown
from sdexport.runtime.adapters.safetensors_file import SafetensorsFile, StoredTensor
from sdexport.runtime.text.added_vectors import Vectors

logger = logging.getLogger(__name__)

MOST_VECTORS = 75
TEXT, TEXT_2 = "text_encoder", "text_encoder_2"
_ENCODERS = {
    **{"clip_l": TEXT, "clip_h": TEXT, "clip_g": TEXT_2},
    **{"text_encoders_0": TEXT, "text_encoders_1": TEXT_2},
}
_T5 = ("t5xxl", "t5", "text_encoders_2")


def bundled_words(
    file: SafetensorsFile, embeddings: Mapping[str, Mapping[str, str]], widths: Mapping[str, int]
) -> dict[str, Vectors]:
    """The words that fit the text encoders; a warning names each of the others, and why.

    Args:
      embeddings: LoraNames.embeddings.
      widths: length of a vector by text encoder of the package.
    """
    found: dict[str, Vectors] = {}
    for word, names in embeddings.items():
        try:
            tensors = {key: file.tensors[name] for key, name in names.items()}
            others = [key for key in tensors if _is_of_another(key, widths)]
            found[word] = _vectors({k: v for k, v in tensors.items() if k not in others}, widths)
        except ValueError as error:
            why = "is not used: %s"
            logger.warning("%s: its bundled embedding of %s " + why, file.path, shown(word), error)
        else:
            if others:
                why = "has vectors for text encoders that the package does not have: %s"
                listed = ", ".join(others)
                logger.warning(
                    "%s: its bundled embedding of %s " + why, file.path, shown(word), listed
                )
    return found


def _is_of_another(key: str, widths: Mapping[str, int]) -> bool:
    """Whether vectors are for a text encoder that the package does not have."""
    return key in _T5 or _ENCODERS.get(key, next(iter(widths))) not in widths


def _vectors(tensors: Mapping[str, StoredTensor], widths: Mapping[str, int]) -> Vectors:
    """Raises: ValueError: they do not fit; says why."""
    found: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        rows = _rows(key, tensor)
        part = _ENCODERS.get(key) or _of_width(rows.shape[1], widths)
        if rows.shape[1] != widths[part]:
            raise ValueError(f"expected vectors of {widths[part]}, got {rows.shape[1]}")
        if part in found:
            raise ValueError(f"it has two sets of vectors for the {part}")
        found[part] = rows
    if missing := [part for part in widths if part not in found]:
        raise ValueError(f"it has no vectors for the {missing[0]}")
    if len({len(rows) for rows in found.values()}) > 1:
        counts = " and ".join(str(len(rows)) for rows in found.values())
        raise ValueError(f"expected as many vectors for each text encoder, got {counts}")
    return {part: found[part] for part in widths}


def _rows(key: str, tensor: StoredTensor) -> np.ndarray:
    if not tensor.is_float or len(tensor.shape) not in (1, 2) or not tensor.shape[-1]:
        raise ValueError(
            f"{key[:40]}: expected floating-point vectors, got {tensor.dtype} of the shape "
            f"{tensor.shape}"
        )
    rows = np.atleast_2d(tensor.values()).astype(np.float32)
    if not 1 <= len(rows) <= MOST_VECTORS:
        raise ValueError(f"expected 1 to {MOST_VECTORS} vectors, got {len(rows)}")
    if not np.isfinite(rows).all():
        raise ValueError("a vector holds NaN or infinity")
    return rows


def _of_width(width: int, widths: Mapping[str, int]) -> str:
    fitting = [part for part, expected in widths.items() if expected == width]
    if len(fitting) != 1:
        wanted = " or ".join(map(str, widths.values()))
        raise ValueError(f"expected vectors of {wanted} that say for which, got vectors of {width}")
    return fitting[0]
