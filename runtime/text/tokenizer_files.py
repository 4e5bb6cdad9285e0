"""The files of a tokenizer's folder, read and checked.

Which file has precedence, and which special tokens follow from them, is the same as in
transformers, so that a folder gives the same ids in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines.errors import SDExportError
from sdexport.engines.files import read_json
from sdexport.engines.guarded_files import TOKENIZER_LIMIT, read_guarded
from sdexport.engines.messages import one_line, plain, shown
from sdexport.runtime.text import bpe
from sdexport.runtime.text.added_tokens import AddedToken
from sdexport.runtime.text.special_tokens import (
    from_added_tokens_decoder,
    from_added_tokens_json,
    from_tokenizer_json,
    is_id,
    mark_special,
    required,
    special_tokens,
    tokens_by_role,
)

DEFAULT_LENGTH = 77
MAX_LENGTH = 100_000
MAX_TOKENS = 300_000
"""In a vocabulary, and so many merges; CLIP has 49,408."""
MAX_ADDED, MAX_CHARACTERS = 20_000, 400_000
"""Added tokens, and characters of all of them: 20,000 vectors of textual inversions."""


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of a tokenizer's files.

    Attributes:
      vocab: token to id.
      added_tokens: in the order in which they get their ids, special tokens included.
      max_length: ids in a row, 2 or more.
    """

    vocab: dict[str, int]
    merges: bpe.Merges
    added_tokens: list[AddedToken]
    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str
    max_length: int


def read(folder: Path, error: type[SDExportError]) -> TokenizerFiles:
    """Read tokenizer.json, or vocab.json and merges.txt, and the smaller files next to them.

    Args:
      error: raised if files are missing, damaged, or do not belong together.
    Raises: OSError: a file cannot be read.
    """
    try:
        return _read(folder, error)
    except ValueError as cause:
        raise error(f"{folder}: the tokenizer is damaged: {one_line(cause)}") from cause


def _read(folder: Path, error: type[SDExportError]) -> TokenizerFiles:
    """Raises: ValueError: what is wrong with the files, without the folder."""
    vocab, lines, listed = _vocabulary(folder, error)
    _check_vocab(vocab)
    merges = bpe.Merges(lines)
    _check_merges(vocab, merges)
    config = _optional_json(folder / "tokenizer_config.json", error)
    if config.get("added_tokens_decoder") is not None:
        added = from_added_tokens_decoder(config["added_tokens_decoder"])
    else:
        config |= mark_special(_optional_json(folder / "special_tokens_map.json", error))
        entries = _optional_json(folder / "added_tokens.json", error)
        added = from_added_tokens_json(entries, config) | from_tokenizer_json(listed)
    roles = tokens_by_role(config)
    known = {token.content for token in added.values()}
    missing = required(roles) - known - vocab.keys()
    if missing:
        raise ValueError(f"the vocabulary has no {', '.join(map(plain, sorted(missing)))}")
    tokens = [added[number] for number in sorted(added)]
    special = [*roles.values(), *special_tokens(config)]
    tokens += [token for token in special if token.content not in known]
    _check_added(tokens)
    return TokenizerFiles(
        vocab,
        merges,
        tokens,
        bos_token=roles["bos_token"].content,
        eos_token=roles["eos_token"].content,
        unk_token=roles["unk_token"].content,
        pad_token=roles["pad_token"].content,
        max_length=_length(config.get("model_max_length")),
    )


def _vocabulary(
    folder: Path, error: type[SDExportError]
) -> tuple[dict[str, Any], list[str], list[Any]]:
    """The vocabulary, the merges, and the entries of `added_tokens` in tokenizer.json."""
    if (folder / "tokenizer.json").is_file():
        data = read_json(folder / "tokenizer.json", error, limit=TOKENIZER_LIMIT)
        model = data.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
            raise ValueError("tokenizer.json: it holds no byte-pair model")
        listed = data.get("added_tokens", [])
        if not isinstance(listed, list):
            raise ValueError(
                f"tokenizer.json: expected a list of added_tokens, got {shown(listed)}"
            )
        return model["vocab"], _merge_lines(model.get("merges")), listed
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = read_json(folder / "vocab.json", error, limit=TOKENIZER_LIMIT)
        return vocab, _read_merges(folder / "merges.txt", error), []
    raise error(f"no tokenizer in {folder}: expected vocab.json and merges.txt, or tokenizer.json")


def _optional_json(path: Path, error: type[SDExportError]) -> dict[str, Any]:
    return read_json(path, error) if path.is_file() else {}


def _read_merges(path: Path, error: type[SDExportError]) -> list[str]:
    """The lines of merges.txt, without its version lines."""
    try:
        text = read_guarded(path, error=error, limit=TOKENIZER_LIMIT).decode("utf-8")
    except UnicodeDecodeError as cause:
        raise ValueError(f"{path.name}: it is not UTF-8 text") from cause
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    _check_count("merges", text.count("\n"))
    lines = [line for line in text.split("\n") if line]
    if lines and lines[0].startswith("#version"):
        del lines[0]
    if "\n#version" in text:
        lines = [line for line in lines if not line.startswith("#version")]
    _check_pairs(path.name, lines, lines)
    return lines


def _merge_lines(merges: Any) -> list[str]:
    """The merges of tokenizer.json: "left right" or ["left", "right"] each."""
    if not isinstance(merges, list):
        raise ValueError(f"tokenizer.json: expected a list of merges, got {shown(merges)}")
    _check_count("merges", len(merges))
    lines = [entry if isinstance(entry, str) else _join_pair(entry) for entry in merges]
    _check_pairs("tokenizer.json", lines, merges)
    return lines


def _join_pair(pair: Any) -> str:
    is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
    return " ".join(pair) if is_pair else ""


def _check_count(what: str, count: int) -> None:
    if count > MAX_TOKENS:
        raise ValueError(f"it has {count:,} {what}, and at most {MAX_TOKENS:,} are read")


def _check_added(tokens: list[AddedToken]) -> None:
    """Every added token becomes part of one pattern, which takes time and memory to compile."""
    characters = sum(len(token.content) for token in tokens)
    if len(tokens) > MAX_ADDED or characters > MAX_CHARACTERS:
        raise ValueError(
            f"it has {len(tokens):,} added tokens of {characters:,} characters; at most "
            f"{MAX_ADDED:,} of {MAX_CHARACTERS:,} are read"
        )


def _check_pairs(file: str, lines: list[str], merges: list[Any]) -> None:
    spaces = list(map(str.count, lines, itertools.repeat(" ")))
    if spaces.count(1) != len(spaces):
        number = next(i for i, count in enumerate(spaces) if count != 1)
        raise ValueError(f"{file}: merge {number + 1} is not a pair: {shown(merges[number])}")


def _check_vocab(vocab: Mapping[str, Any]) -> None:
    _check_count("tokens", len(vocab))
    ids = vocab.values()
    if not set(map(type, ids)) <= {int} or (vocab and not (is_id(min(ids)) and is_id(max(ids)))):
        token, number = next(item for item in vocab.items() if not is_id(item[1]))
        raise ValueError(f"the vocabulary gives {shown(token)} no valid id: {shown(number)}")
    if len(set(ids)) != len(vocab):
        raise ValueError("the vocabulary assigns one id to several tokens")


def _check_merges(vocab: Mapping[str, int], merges: bpe.Merges) -> None:
    if not merges.products.keys() <= vocab.keys():
        rank = next(rank for token, rank in merges.products.items() if token not in vocab)
        left, right = merges.lines[rank].split(" ")
        raise ValueError(
            "merges and vocabulary do not match: "
            f"{shown(left)} + {shown(right)} is not in the vocabulary"
        )


def _length(value: Any) -> int:
    """model_max_length, or 77 if that is not a length: transformers writes 1e30 for "not set"."""
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= MAX_LENGTH:
        return DEFAULT_LENGTH
    return value
