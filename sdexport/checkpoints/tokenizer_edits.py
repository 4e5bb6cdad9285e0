"""Adding tokens to a tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import read_config, write_config
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.engines.guarded_files import TOKENIZER_LIMIT
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.text.tokenizer import ClipTokenizer

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}


def add_tokens(folder: Path, tokens: Mapping[str, Path]) -> dict[str, int]:
    """Give new tokens the next ids of a tokenizer, in files that transformers reads as well.

    Args:
      folder: of the tokenizer; its files are changed.
      tokens: each with the embedding file that it comes from, for messages.
    Returns: the id of each token.
    Raises: InvalidArgumentError: the tokenizer has such a token already, or splits it.
      CheckpointError: the tokenizer is damaged.
    """
    tokenizer = ClipTokenizer.from_folder(folder, error=CheckpointError)
    with parsing(f"{folder}: the tokenizer is damaged"):
        known = known_tokens(folder)
    for token, path in tokens.items():
        if token in known:
            raise token_exists(path, token)
    with parsing(f"{folder}: the tokenizer is damaged"):
        ids = {token: tokenizer.vocab_size + number for number, token in enumerate(tokens)}
        _write_tokens(folder, ids)
    changed = ClipTokenizer.from_folder(folder, error=CheckpointError)
    for token, number in ids.items():
        if changed.encode(token) != [number]:
            raise InvalidArgumentError(
                f"{tokens[token]}: the tokenizer cannot tell {shown(token)} from other words; "
                "give another word as FILE:WORD"
            )
    return ids


def known_tokens(folder: Path) -> set[str]:
    """Every token of a tokenizer's vocabulary, and those that were added."""
    if (folder / "tokenizer.json").is_file():
        data = read_config(folder / "tokenizer.json", TOKENIZER_LIMIT)
        return {*data["model"]["vocab"], *(t["content"] for t in data.get("added_tokens", []))}
    decoder = _optional(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    added = {
        *_optional(folder / "added_tokens.json"),
        *(token["content"] for token in decoder.values()),
    }
    return {*_optional(folder / "vocab.json"), *added}


def _write_tokens(folder: Path, ids: Mapping[str, int]) -> None:
    """Add the tokens to the files that hold the tokenizer's other added tokens."""
    config = _optional(folder / "tokenizer_config.json")
    if config.get("added_tokens_decoder") is not None:
        for token, number in ids.items():
            config["added_tokens_decoder"][str(number)] = _entry(token)
        _write(folder / "tokenizer_config.json", config)
    else:
        _write(folder / "added_tokens.json", _optional(folder / "added_tokens.json") | dict(ids))
    if (folder / "tokenizer.json").is_file():
        data = read_config(folder / "tokenizer.json", TOKENIZER_LIMIT)
        added = data.setdefault("added_tokens", [])
        added.extend({"id": number} | _entry(token) for token, number in ids.items())
        _write(folder / "tokenizer.json", data)


def _entry(token: str) -> dict[str, Any]:
    return {"content": token, "special": False} | _FLAGS


def _optional(path: Path) -> dict[str, Any]:
    return read_config(path, TOKENIZER_LIMIT) if path.is_file() else {}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_config(path, values, ensure_ascii=False)


def token_exists(path: Path, token: str) -> InvalidArgumentError:
    """The error for a token of an embedding file that exists already."""
    return InvalidArgumentError(
        f"{path}: the tokenizer has a token {shown(token)} already; give another word as FILE:WORD"
    )
