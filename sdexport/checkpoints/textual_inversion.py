"""Textual inversion: new words, each with learned vectors, put into tokenizer and text encoder.

A word of several vectors becomes as many tokens: `word`, `word_1`, `word_2`, as in diffusers.
Source: Gal et al. 2022, arXiv 2208.01618.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.text.tokenizer import ClipTokenizer

MOST_VECTORS = 75
LEGACY_EOS = 2
"""The end token that old configurations name and transformers reads as the highest id."""
_SDXL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}


@dataclass(frozen=True)
class Embedding:
    """A word and its vectors for each text encoder, (n, width) float32."""

    file: WeightFile
    word: str
    vectors: Mapping[str, torch.Tensor] = field(repr=False)

    @property
    def tokens(self) -> list[str]:
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
          word: default the file's own, or its name.
          widths: of the vectors of each text encoder.
        Raises: FileNotFoundError, ValueError: see WeightFile.open; ValueError: no embedding, or one
          for another family.
        """
        file = WeightFile.open(path, allow_pickle=allow_pickle)
        own, found = _contents(file)
        name = file.path.stem if own is None else own
        name = name if word is None else word
        if not name.strip() or any(not c.isprintable() for c in name):
            raise ValueError(f"{path}: {name!r} is no word for a prompt; give FILE:WORD")
        if set(found) == {""}:  # one set of vectors, which only one encoder can be meant by
            part = next(iter(widths))
            found = {part: found[""]}
        for part, width in widths.items():
            vectors = found.get(part)
            if vectors is None or vectors.shape[1] != width:
                came = "none" if vectors is None else f"vectors of {vectors.shape[1]}"
                raise ValueError(
                    f"{path}: expected vectors of {width} for the {part}, got {came}; "
                    "the embedding is made for another family"
                )
        chosen = {part: found[part].to(torch.float32) for part in widths}
        counts = {len(rows) for rows in chosen.values()}
        if len(counts) != 1 or not 1 <= max(counts) <= MOST_VECTORS:
            raise ValueError(
                f"{path}: expected 1 to {MOST_VECTORS} vectors, as many for each encoder, "
                f"got {' and '.join(str(len(rows)) for rows in chosen.values())}"
            )
        if not all(torch.isfinite(rows).all() for rows in chosen.values()):
            raise ValueError(f"{path}: a vector holds NaN or infinity")
        return cls(file, name, chosen)


def parse_embedding(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:WORD; a name with colons in it is taken whole if there is such a file.

    Raises: FileNotFoundError: no such file.
    """
    if Path(text).is_file():
        return Path(text), None
    name, _, word = text.rpartition(":")
    if not name or not Path(name).is_file():
        raise FileNotFoundError(f"no embedding at {text}: expected FILE or FILE:WORD")
    return Path(name), word


def add_tokens(folder: Path, embeddings: Sequence[Embedding]) -> dict[str, int]:
    """Give new tokens the next ids of a tokenizer, in files that transformers reads as well.

    Args:
      folder: of the tokenizer, which is changed.
    Returns: the id of each token.
    Raises: ValueError: a token is there already.
    """
    tokenizer = ClipTokenizer.from_folder(folder, error=CheckpointError)
    known = _known_tokens(folder)
    ids: dict[str, int] = {}
    for embedding in embeddings:
        for token in embedding.tokens:
            if token in known or token in ids:
                raise ValueError(
                    f"{embedding.file.path}: the tokenizer has a token {token!r} already; "
                    "give another word as FILE:WORD"
                )
            ids[token] = tokenizer.vocab_size + len(ids)
    _write_tokens(folder, ids)
    changed = ClipTokenizer.from_folder(folder, error=CheckpointError)
    lost = [token for token, number in ids.items() if changed.encode(token) != [number]]
    if lost:
        raise ValueError(f"{folder.name}: {lost[0]!r} cannot be told from other words; rename it")
    return ids


def add_vectors(
    part: str, module: Any, embeddings: Sequence[Embedding], ids: Mapping[str, int], *, eos: int
) -> None:
    """Append the vectors to a text encoder's token embeddings.

    Args:
      eos: the tokenizer's end token. Old configurations say 2 and mean the largest id, which a new
        token would be.
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


def _contents(file: WeightFile) -> tuple[str | None, dict[str, torch.Tensor]]:
    """The word, if the file tells it, and the vectors by part; "" where it tells no part."""
    content = file.content
    word: str | None = None
    if isinstance(content, dict) and isinstance(content.get("string_to_param"), dict):
        found = {"": content["string_to_param"].get("*")}
        word = content["name"] if isinstance(content.get("name"), str) else None
    elif set(file.tensors) == set(_SDXL):
        found = {part: file.tensors[name] for name, part in _SDXL.items()}
    elif len(file.tensors) == 1:
        name, tensor = next(iter(file.tensors.items()))
        word, found = None if name == "emb_params" else name, {"": tensor}
    else:
        raise ValueError(f"{file.path} is {file.kind}; expected a textual-inversion embedding")
    vectors = {}
    for part, tensor in found.items():
        if not isinstance(tensor, torch.Tensor) or tensor.ndim not in (1, 2):
            raise ValueError(f"{file.path} is {file.kind}; expected a textual-inversion embedding")
        vectors[part] = tensor.reshape(-1, tensor.shape[-1])
    return word, vectors


def _known_tokens(folder: Path) -> set[str]:
    vocab = folder / "vocab.json"
    if (folder / "tokenizer.json").is_file():
        data = _read(folder / "tokenizer.json")
        return {*data["model"]["vocab"], *(t["content"] for t in data.get("added_tokens", []))}
    decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    added = {*_read(folder / "added_tokens.json"), *(t["content"] for t in decoder.values())}
    return {*_read(vocab), *added}


def _write_tokens(folder: Path, ids: Mapping[str, int]) -> None:
    """Where the folder's other added tokens stand."""
    config = _read(folder / "tokenizer_config.json")
    if config.get("added_tokens_decoder") is not None:
        for token, number in ids.items():
            config["added_tokens_decoder"][str(number)] = {
                "content": token,
                "special": False,
            } | _FLAGS
        _write(folder / "tokenizer_config.json", config)
    else:
        _write(folder / "added_tokens.json", _read(folder / "added_tokens.json") | dict(ids))
    if (folder / "tokenizer.json").is_file():
        data = _read(folder / "tokenizer.json")
        data.setdefault("added_tokens", []).extend(
            {"id": number, "content": token, "special": False} | _FLAGS
            for token, number in ids.items()
        )
        _write(folder / "tokenizer.json", data)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
