"""The words that a textual-inversion file holds, and their vectors for each text encoder.

Layouts: diffusers, AUTOMATIC1111 (old and new), ComfyUI, OneTrainer, and pivotal tuning as in
cog-sdxl. A file may hold the vectors of one text encoder alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import one_line, plain

logger = logging.getLogger(__name__)

MOST_VECTORS = 75
_KIND = "a textual-inversion embedding"
TEXT, TEXT_2 = "text_encoder", "text_encoder_2"
_ENCODERS = {"clip_l": TEXT, "clip_g": TEXT_2, "clip_h": TEXT}
_PIVOTAL = {"text_encoders_0": TEXT, "text_encoders_1": TEXT_2}
"""Each row is a word of its own, called <s0>, <s1>, ..."""
_OTHER_ENCODERS = {"t5xxl", "t5", "text_encoders_2"}
_MODELS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the second text encoder of Stable Diffusion XL",
    4096: "a T5 text encoder, as in Stable Diffusion 3 and Flux",
}
_NO_WORD = re.compile(r"\*|emb_params|string_to_param\..*")
"""Keys that are no words; the file's name is the word."""
Vectors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Word:
    """A word and its vectors.

    name: None if the file does not name it.
    vectors: by text encoder, (n, width) float32.
    """

    path: Path
    name: str | None
    vectors: Vectors = field(repr=False)


def words_of(file: WeightFile, widths: Mapping[str, int], word: str | None = None) -> list[Word]:
    """The words of a textual-inversion file.

    Args:
      widths: length of a vector by text encoder of the checkpoint.
      word: replaces the name in the file; then all vectors are those of one word.
    Raises: CheckpointError: no embedding, or none for this checkpoint.
    """
    content = file.content
    if isinstance(content, torch.Tensor):
        return [_word(file, None, {"": content}, widths)]
    if isinstance(content, Mapping) and "string_to_param" in content:
        own = content["name"] if isinstance(content.get("name"), str) else None
        return [_word(file, own, {"": _only(file, content["string_to_param"])}, widths)]
    tensors = file.tensors
    if _PIVOTAL.keys() & tensors.keys():
        vectors = _word(file, word, _by_encoder(file, tensors, _PIVOTAL), widths).vectors
        if word is not None:
            return [Word(file.path, word, vectors)]
        count = len(next(iter(vectors.values())))
        return [
            Word(file.path, f"<s{i}>", {part: rows[i : i + 1] for part, rows in vectors.items()})
            for i in range(count)
        ]
    if _ENCODERS.keys() & tensors.keys():
        return [_word(file, None, _by_encoder(file, tensors, _ENCODERS), widths)]
    return _named(file, widths)


def bundled_word(path: Path, name: str, tensors: Vectors, widths: Mapping[str, int]) -> Word:
    """A word whose vectors are part of a LoRA file.

    Args:
      tensors: by the end of their names, such as "clip_l" or "string_to_param.*".
    Raises: CheckpointError: see words_of.
    """
    plain = {"string_to_param.*": "emb_params"}
    renamed = {plain.get(key, key): tensor for key, tensor in tensors.items()}
    (word,) = words_of(WeightFile(path, renamed, {}, renamed), widths)
    return Word(path, name, word.vectors)


def _only(file: WeightFile, params: Any) -> Any:
    """The only entry of string_to_param, which the original implementation stores as a module."""
    if isinstance(params, torch.nn.ParameterDict):
        params = vars(params).get(
            "_parameters"
        )  # methods of the class need a newer version's state
    if not isinstance(params, Mapping):
        raise _not_an_embedding(file)
    if len(params) != 1:
        names = ", ".join(plain(str(name)) for name in params) or "none"
        raise CheckpointError(f"{file.path}: expected one entry of string_to_param, got {names}")
    return next(iter(params.values()))


def _by_encoder(
    file: WeightFile, tensors: Vectors, encoders: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The tensors by text encoder, with a word about those that are for another one."""
    if outputs := [name for name in tensors if name.endswith("_out")]:
        raise CheckpointError(
            f"{file.path}: it holds vectors for the output of a text encoder "
            f"({plain(outputs[0])}), which are not supported"
        )
    if others := sorted(tensors.keys() - encoders.keys()):
        what = (
            "for a T5 text encoder" if _OTHER_ENCODERS.issuperset(others) else "of unknown meaning"
        )
        logger.warning("%s: not used: %s, %s", file.path, ", ".join(map(plain, others)), what)
    return {encoders[name]: tensor for name, tensor in tensors.items() if name in encoders}


def _named(file: WeightFile, widths: Mapping[str, int]) -> list[Word]:
    """The words of a file whose keys are words, or "emb_params" or "*"."""
    tensors = file.tensors
    if "emb_params_out" in tensors:
        _by_encoder(file, tensors, {})
    usable = all(tensor.ndim in (1, 2) for tensor in tensors.values())
    single = len(tensors) == 1
    if not tensors or not usable or (not single and any(re.search(r"\w\.\w", k) for k in tensors)):
        raise _not_an_embedding(file)
    return [
        _word(file, None if _NO_WORD.fullmatch(name) else name, {"": tensor}, widths)
        for name, tensor in tensors.items()
    ]


def _word(
    file: WeightFile, name: str | None, found: Mapping[str, Any], widths: Mapping[str, int]
) -> Word:
    """The word with its vectors as float32, each for one of the checkpoint's text encoders."""
    vectors: dict[str, torch.Tensor] = {}
    for part, tensor in found.items():
        if not isinstance(tensor, torch.Tensor) or tensor.ndim not in (1, 2):
            raise _not_an_embedding(file)
        rows = _checked(file, tensor)
        target = part or _encoder_of_width(file, rows.shape[1], widths)
        if target not in widths:
            model = "Stable Diffusion XL" if len(found) > 1 else _MODELS.get(rows.shape[1])
            logger.warning(
                "%s: its vectors for the %s are not used: the checkpoint has no such component%s",
                *(file.path, target, f"; they are made for {model}" if model else ""),
            )
            continue
        if rows.shape[1] != widths[target]:
            raise _wrong_width(file, rows.shape[1], {target: widths[target]}, found)
        vectors[target] = rows
    if not vectors:
        raise CheckpointError(
            f"{file.path}: none of its vectors are for the {' or '.join(widths)} of this checkpoint"
        )
    if len({len(rows) for rows in vectors.values()}) > 1:
        counts = " and ".join(str(len(rows)) for rows in vectors.values())
        raise CheckpointError(
            f"{file.path}: expected as many vectors for each encoder, got {counts}"
        )
    return Word(file.path, name, vectors)


def _checked(file: WeightFile, tensor: torch.Tensor) -> torch.Tensor:
    """The vectors as rows of float32."""
    if not tensor.is_floating_point():
        raise CheckpointError(f"{file.path}: expected floating-point vectors, got {tensor.dtype}")
    rows = tensor.detach().reshape(-1, tensor.shape[-1]).to(torch.float32)
    if not 1 <= len(rows) <= MOST_VECTORS:
        raise CheckpointError(f"{file.path}: expected 1 to {MOST_VECTORS} vectors, got {len(rows)}")
    if not torch.isfinite(rows).all():
        raise CheckpointError(f"{file.path}: a vector holds NaN or infinity")
    return rows


def _encoder_of_width(file: WeightFile, width: int, widths: Mapping[str, int]) -> str:
    """The text encoder that takes vectors of this width.

    Raises: CheckpointError: none does, or both do.
    """
    fitting = [part for part, expected in widths.items() if expected == width]
    if not fitting:
        raise _wrong_width(file, width, widths, {})
    if len(fitting) > 1:
        raise CheckpointError(
            f"{file.path}: vectors of {width} fit {' and '.join(fitting)}, and the file does not "
            "say which; store them as clip_l or clip_g"
        )
    return fitting[0]


def _wrong_width(
    file: WeightFile, width: int, expected: Mapping[str, int], found: Mapping[str, Any]
) -> CheckpointError:
    wanted = " or ".join(f"{expected[part]} for the {part}" for part in expected)
    model = "Stable Diffusion XL" if len(found) > 1 else _MODELS.get(width, "another family")
    return CheckpointError(
        f"{file.path}: expected vectors of {wanted}, got vectors of {width}; the embedding is made "
        f"for {model}"
    )


def _not_an_embedding(file: WeightFile) -> CheckpointError:
    if file.kind == _KIND:
        shapes = ", ".join(f"{k} of shape {tuple(v.shape)}" for k, v in file.tensors.items())
        return CheckpointError(
            f"{file.path}: expected vectors of one or two dimensions, got {one_line(shapes, 200)}"
        )
    return CheckpointError(f"{file.path} is {file.kind}; expected {_KIND}")
