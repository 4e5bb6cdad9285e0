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

from sdexport.checkpoints.embedding_file import Word, words_of
from sdexport.checkpoints.tokenizer_edits import token_exists
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.engines.messages import plain, shown
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.adapters.header_entries import warn_about_unknown

LEGACY_EOS = 2
"""The end token in old configurations, which transformers reads as the highest id."""


@dataclass(frozen=True)
class Embedding:
    """A word and its vectors for each text encoder, (n, width) float32.

    paths: the files that they come from.
    """

    paths: tuple[Path, ...]
    word: str
    vectors: Mapping[str, torch.Tensor] = field(repr=False)

    @property
    def tokens(self) -> list[str]:
        """One token for each vector."""
        count = len(next(iter(self.vectors.values())))
        return [self.word, *(f"{self.word}_{i}" for i in range(1, count))]


def read_words(
    path: str | Path, word: str | None, widths: Mapping[str, int], *, allow_pickle: bool = False
) -> list[Word]:
    """The words of a file; a word without a name takes that of the file.

    Args:
      word: replaces the name in the file.
      widths: length of a vector by text encoder.
    Raises: FileNotFoundError: no such file. CheckpointError: see WeightFile.open; no embedding, or
      one for another family. InvalidArgumentError: the word cannot be used in a prompt, or the file
      holds several.
    """
    file = WeightFile.open(path, allow_pickle=allow_pickle)
    with parsing(f"{path}: not a usable textual-inversion embedding"):
        found = words_of(file, widths, word)
    warn_about_unknown(file.path, file.metadata)
    if word is not None and len(found) > 1:
        names = ", ".join(plain(str(one.name)) for one in found)
        raise InvalidArgumentError(f"{path}: it holds several words ({names}); omit {shown(word)}")
    words = []
    for one in found:
        name = word if word is not None else one.name
        name = file.path.stem if name is None else name
        if not name.strip() or not name.isprintable():
            raise InvalidArgumentError(
                f"{path}: {shown(name)} is not a word for a prompt; give FILE:WORD"
            )
        words.append(Word(file.path, name, one.vectors))
    return words


def join_words(words: Sequence[Word], encoders: Sequence[str]) -> list[Embedding]:
    """The embeddings of these words; files for one text encoder each are joined by their word.

    Raises: CheckpointError: a text encoder has no vectors of a word, or not as many as the other.
    """
    joined: list[list[Word]] = []
    for word in words:
        for group in joined:
            covered = {part for other in group for part in other.vectors}
            if group[0].name == word.name and covered.isdisjoint(word.vectors):
                group.append(word)
                break
        else:
            joined.append([word])
    embeddings = []
    for group in joined:
        name, path = str(group[0].name), group[0].path
        vectors = {part: rows for word in group for part, rows in word.vectors.items()}
        if missing := [part for part in encoders if part not in vectors]:
            raise CheckpointError(
                f"{path}: it holds vectors for the {' and '.join(vectors)} alone; it is made for "
                f"another family, or another file holds those for the {missing[0]}: give that "
                f"file as well, with the same word: FILE:{name}"
            )
        counts = {part: len(vectors[part]) for part in encoders}
        if len(set(counts.values())) > 1:
            raise CheckpointError(
                f"{path}: expected as many vectors for each encoder, got "
                + " and ".join(f"{n} for the {part}" for part, n in counts.items())
            )
        paths = tuple(word.path for word in group)
        embeddings.append(Embedding(paths, name, {part: vectors[part] for part in encoders}))
    return embeddings


def parse_embedding(text: str) -> tuple[Path, str | None]:
    """Path and word of an argument PATH or PATH:WORD; a path with colons in its name is found.

    Raises: FileNotFoundError: no such file or folder.
    """
    if text and Path(text).exists():
        return Path(text), None
    name, _, word = text.rpartition(":")
    if not name or not Path(name).exists():
        raise FileNotFoundError(f"no embedding at {text}: expected FILE, FOLDER or FILE:WORD")
    return Path(name), word


def embedding_sources(text: str) -> list[tuple[Path, str | None]]:
    """The files that PATH or PATH:WORD names, each with its word.

    A folder holds learned_embeds.safetensors, and for SDXL learned_embeds_2.safetensors, as the
    training scripts of diffusers write them, or one file of any name.

    Raises: FileNotFoundError: no such file or folder. CheckpointError: no embedding in the folder,
      or several.
    """
    path, word = parse_embedding(text)
    if not path.is_dir():
        return [(path, word)]
    for suffix in (".safetensors", ".bin"):
        named = [path / f"learned_embeds{number}{suffix}" for number in ("", "_2")]
        if found := [file for file in named if file.is_file()]:
            return [(file, word) for file in found]
    found = sorted(file for file in path.glob("*.safetensors") if file.is_file())
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise CheckpointError(
            f"{path}: expected learned_embeds.safetensors or one file of an embedding in this "
            f"folder, got {names}"
        )
    return [(found[0], word)]


def tokens_of(embeddings: Sequence[Embedding]) -> dict[str, Path]:
    """The tokens of all embeddings, in order, each with its file.

    Raises: InvalidArgumentError: two embeddings have a token in common.
    """
    tokens: dict[str, Path] = {}
    for embedding in embeddings:
        for token in embedding.tokens:
            if token in tokens:
                raise token_exists(embedding.paths[0], token)
            tokens[token] = embedding.paths[0]
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
