"""Textual inversion: new words with learned vectors, added to tokenizer and text encoder.

A word of several vectors becomes as many tokens: `word`, `word_1`, `word_2`, as in diffusers.
Source: Gal et al. 2022, arXiv 2208.01618.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdexport.checkpoints.config_files import parsing
from sdexport.checkpoints.tokenizer_edits import token_exists
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError, InvalidArgumentError

MOST_VECTORS = 75
LEGACY_EOS = 2
"""The end token in old configurations, which transformers reads as the highest id."""
_SDXL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass(frozen=True)
class Embedding:
    """A word and its vectors for each text encoder, (n, width) float32."""

    file: WeightFile
    word: str
    vectors: Mapping[str, torch.Tensor] = field(repr=False)

    @property
    def tokens(self) -> list[str]:
        """One token for each vector."""
        count = len(next(iter(self.vectors.values())))
        return [self.word, *(f"{self.word}_{i}" for i in range(1, count))]

    @classmethod
    def open(
        cls,
        path: str | Path,
        word: str | None,
        widths: Mapping[str, int],
        *,
        allow_pickle: bool = False,
    ) -> Embedding:
        """Read a file of diffusers or of AUTOMATIC1111's web interface, or one for SDXL.

        Args:
          word: default the word in the file, or the file's name.
          widths: length of a vector by text encoder.
        Raises: FileNotFoundError: no such file. CheckpointError: see WeightFile.open; no embedding,
          or one for another family. InvalidArgumentError: the word cannot be used in a prompt.
        """
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        with parsing(f"{path}: not a usable textual-inversion embedding"):
            own, found = _contents(file)
            if set(found) == {""}:  # one set of vectors: for the only encoder
                found = {next(iter(widths)): found[""]}
            vectors = _checked(path, found, widths)
        name = word if word is not None else (file.path.stem if own is None else own)
        if not name.strip() or not name.isprintable():
            raise InvalidArgumentError(
                f"{path}: {name!r} is not a word for a prompt; give FILE:WORD"
            )
        return cls(file, name, vectors)


def parse_embedding(text: str) -> tuple[Path, str | None]:
    """Path and word of an argument FILE or FILE:WORD; a file with colons in its name is found.

    Raises: FileNotFoundError: no such file.
    """
    if Path(text).is_file():
        return Path(text), None
    name, _, word = text.rpartition(":")
    if not name or not Path(name).is_file():
        raise FileNotFoundError(f"no embedding at {text}: expected FILE or FILE:WORD")
    return Path(name), word


def tokens_of(embeddings: Sequence[Embedding]) -> dict[str, Path]:
    """The tokens of all embeddings, in order, each with its file.

    Raises: InvalidArgumentError: two embeddings have a token in common.
    """
    tokens: dict[str, Path] = {}
    for embedding in embeddings:
        for token in embedding.tokens:
            if token in tokens:
                raise token_exists(embedding.file.path, token)
            tokens[token] = embedding.file.path
    return tokens


def add_vectors(
    part: str, module: Any, embeddings: Sequence[Embedding], ids: Mapping[str, int], *, eos: int
) -> None:
    """Append the vectors to a text encoder's token embeddings.

    Args:
      eos: the tokenizer's end token. Old configurations say LEGACY_EOS and mean the largest id,
        which would be that of a new token.
    """
    old = module.get_input_embeddings().weight.data
    weight = old.new_zeros(max(len(old), max(ids.values()) + 1), old.shape[1])
    weight[: len(old)] = old
    for embedding in embeddings:
        for token, row in zip(embedding.tokens, embedding.vectors[part], strict=True):
            weight[ids[token]] = row
    module.set_input_embeddings(nn.Embedding.from_pretrained(weight))
    module.config.vocab_size = len(weight)
    for layer in module.modules():
        if getattr(layer, "eos_token_id", None) == LEGACY_EOS:
            layer.eos_token_id = eos


def _checked(
    path: str | Path, found: Mapping[str, torch.Tensor], widths: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """The vectors of each text encoder, as float32."""
    for part, width in widths.items():
        vectors = found.get(part)
        if vectors is None or vectors.shape[1] != width:
            got = "none" if vectors is None else f"vectors of {vectors.shape[1]}"
            raise CheckpointError(
                f"{path}: expected vectors of {width} for the {part}, got {got}; "
                "the embedding is made for another family"
            )
    chosen = {part: found[part].to(torch.float32) for part in widths}
    counts = [len(rows) for rows in chosen.values()]
    if len(set(counts)) != 1 or not 1 <= counts[0] <= MOST_VECTORS:
        raise CheckpointError(
            f"{path}: expected 1 to {MOST_VECTORS} vectors, as many for each encoder, "
            f"got {' and '.join(map(str, counts))}"
        )
    if not all(torch.isfinite(rows).all() for rows in chosen.values()):
        raise CheckpointError(f"{path}: a vector holds NaN or infinity")
    return chosen


def _contents(file: WeightFile) -> tuple[str | None, dict[str, torch.Tensor]]:
    """The word if the file names one, and the vectors by text encoder; "" if it names none."""
    content = file.content
    word: str | None = None
    found: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("string_to_param"), dict):
        found = {"": content["string_to_param"].get("*")}
        word = content["name"] if isinstance(content.get("name"), str) else None
    elif set(file.tensors) == set(_SDXL):
        found = {part: file.tensors[name] for name, part in _SDXL.items()}
    elif len(file.tensors) == 1:
        name, tensor = next(iter(file.tensors.items()))
        word, found = None if name == "emb_params" else name, {"": tensor}
    vectors = {
        part: tensor.reshape(-1, tensor.shape[-1])
        for part, tensor in found.items()
        if isinstance(tensor, torch.Tensor) and tensor.ndim in (1, 2)
    }
    if not found or len(vectors) != len(found):
        raise CheckpointError(f"{file.path} is {file.kind}; expected a textual-inversion embedding")
    return word, vectors
