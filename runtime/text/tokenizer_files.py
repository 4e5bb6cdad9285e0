"""What a tokenizer's folder holds, read and checked.

Which file counts, and how special tokens come together from them, is as in transformers: a folder
gives the same ids here and there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.runtime.text import bpe
from sdexport.runtime.text.added_tokens import AddedToken

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
DEFAULT_LENGTH = 77
MAX_LENGTH = 100_000
MAX_ID = 2**31 - 1
_NAMED = {
    "bos_token": BOS,
    "eos_token": EOS,
    "unk_token": EOS,
    "sep_token": None,
    "pad_token": EOS,
    "cls_token": None,
    "mask_token": None,
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class TokenizerFiles:
    """Everything that a tokenizer is made of.

    vocab: token to id.
    added_tokens: in the order in which they get their ids, special tokens included.
    """

    vocab: dict[str, int]
    merges: bpe.Merges
    added_tokens: list[AddedToken]
    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str
    max_length: int


def read(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, or vocab.json with merges.txt, and the smaller files beside them.

    Raises: FileNotFoundError: no tokenizer there. ValueError: the files are damaged, or do not
      belong together.
    """
    listed: list[Any] = []
    if (folder / "tokenizer.json").is_file():
        vocab, lines, listed = _read_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = _read_json(folder / "vocab.json")
        lines = _read_merges(folder / "merges.txt")
    else:
        raise FileNotFoundError(
            f"no tokenizer in {folder}: expected vocab.json and merges.txt, or tokenizer.json"
        )
    _check_vocab(folder, vocab)
    merges = bpe.Merges(lines)
    _check_merges(folder, vocab, merges)
    config = _optional_json(folder / "tokenizer_config.json")
    added: dict[int, AddedToken] = {}
    if config.get("added_tokens_decoder") is not None:
        added = _decoder(config["added_tokens_decoder"])
    else:
        config |= _special_map(folder / "special_tokens_map.json")
        added = _legacy(_optional_json(folder / "added_tokens.json"), config) | _listed(listed)
    named = _named(config)
    known = {token.content for token in added.values()}
    missing = {named[role].content for role, default in _NAMED.items() if default}
    missing -= known | vocab.keys()
    if missing:
        raise ValueError(f"tokenizer: the vocabulary has no {', '.join(sorted(missing))}")
    tokens = [added[number] for number in sorted(added)]
    tokens += [token for token in [*named.values(), *_extra(config)] if token.content not in known]
    return TokenizerFiles(
        vocab,
        merges,
        tokens,
        bos_token=named["bos_token"].content,
        eos_token=named["eos_token"].content,
        unk_token=named["unk_token"].content,
        pad_token=named["pad_token"].content,
        max_length=_length(config.get("model_max_length")),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tokenizer: {path.name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"tokenizer: {path.name} holds no JSON object")
    return value


def _optional_json(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_merges(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"tokenizer: {path.name} is no UTF-8 text") from error
    lines = [line for line in text.split("\n") if line]
    if lines and lines[0].startswith("#version"):
        del lines[0]
    if "\n#version" in text:
        lines = [line for line in lines if not line.startswith("#version")]
    _check_pairs(path, lines, lines)
    return lines


def _pairs(path: Path, merges: Any) -> list[str]:
    if not isinstance(merges, list):
        raise ValueError(f"tokenizer: {path.name}: expected a list of merges, got {_brief(merges)}")
    lines = [entry if isinstance(entry, str) else _joined(entry) for entry in merges]
    _check_pairs(path, lines, merges)
    return lines


def _check_pairs(path: Path, lines: list[str], merges: list[Any]) -> None:
    spaces = list(map(str.count, lines, itertools.repeat(" ")))
    if spaces.count(1) != len(spaces):
        number = next(i for i, count in enumerate(spaces) if count != 1)
        raise ValueError(
            f"tokenizer: {path.name}: merge {number + 1} is no pair: {_brief(merges[number])}"
        )


def _joined(pair: Any) -> str:
    is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
    return " ".join(pair) if is_pair else ""


def _read_tokenizer_json(path: Path) -> tuple[dict[str, Any], list[str], list[Any]]:
    data = _read_json(path)
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ValueError(f"tokenizer: {path.name} holds no byte-pair model")
    listed = data.get("added_tokens", [])
    if not isinstance(listed, list):
        raise ValueError(
            f"tokenizer: {path.name}: expected a list of added_tokens, got {_brief(listed)}"
        )
    return model["vocab"], _pairs(path, model.get("merges")), listed


def _check_vocab(folder: Path, vocab: Mapping[str, Any]) -> None:
    ids = vocab.values()
    if not set(map(type, ids)) <= {int} or (vocab and not 0 <= min(ids) <= max(ids) <= MAX_ID):
        stray = next(item for item in vocab.items() if not _is_id(item[1]))
        raise ValueError(
            f"tokenizer: the vocabulary in {folder} maps tokens to something else than ids: "
            f"{_brief(stray[0])} to {_brief(stray[1])}"
        )
    if len(set(ids)) != len(vocab):
        raise ValueError(f"tokenizer: the vocabulary in {folder} gives one id to several tokens")


def _check_merges(folder: Path, vocab: Mapping[str, int], merges: bpe.Merges) -> None:
    if not merges.products.keys() <= vocab.keys():
        rank = next(rank for token, rank in merges.products.items() if token not in vocab)
        left, right = merges.lines[rank].split(" ")
        raise ValueError(
            f"tokenizer: merges and vocabulary in {folder} do not belong together: "
            f"'{left}' + '{right}' makes no token of the vocabulary"
        )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def _decoder(entries: Any) -> dict[int, AddedToken]:
    """added_tokens_decoder of tokenizer_config.json: {"49408": {"content": ..., flags}}."""
    if not isinstance(entries, dict):
        raise ValueError(
            f"tokenizer: added_tokens_decoder: expected a JSON object, got {_brief(entries)}"
        )
    added = {}
    for key, entry in entries.items():
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else -1
        if not _is_id(number):
            raise ValueError(f"tokenizer: added_tokens_decoder: {_brief(key)} is no id")
        added[number] = _token(entry, "added_tokens_decoder")
    return added


def _legacy(entries: Mapping[str, Any], config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """added_tokens.json: {"<cat-toy>": 49408}."""
    special = {_content(config[name]) for name in _NAMED if config.get(name)}
    special |= {token.content for token in _extra(config)}
    added = {}
    for content, number in entries.items():
        if not _is_id(number):
            raise ValueError(
                f"tokenizer: added_tokens.json: {_brief(content)} has no id, but {_brief(number)}"
            )
        added[number] = AddedToken(content, normalized=content not in special)
    if len(added) != len(entries):
        raise ValueError("tokenizer: added_tokens.json gives one id to several tokens")
    return added


def _listed(entries: list[Any]) -> dict[int, AddedToken]:
    """added_tokens of tokenizer.json: [{"id": 49408, "content": ..., flags}]."""
    added = {}
    for entry in entries:
        token = _token(entry, "added_tokens")
        if not _is_id(entry.get("id")):
            raise ValueError(
                f"tokenizer: added_tokens: {_brief(token.content)} has no id, "
                f"but {_brief(entry.get('id'))}"
            )
        if entry["id"] in added:
            raise ValueError(f"tokenizer: added_tokens: id {entry['id']} is there twice")
        added[entry["id"]] = token
    return added


def _special_map(path: Path) -> dict[str, Any]:
    """special_tokens_map.json, its tokens marked as special."""
    return {
        key: value | {"special": True} if isinstance(value, dict) else value
        for key, value in _optional_json(path).items()
    }


def _named(config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """The tokens with a role; the end token where a role is declared void."""
    named = {}
    for name, default in _NAMED.items():
        value = config.get(name, default)
        value = default if value is None else value
        if value is not None:
            named[name] = _special(value, name)
    for name, value in config.items():
        if name.endswith("_token") and name not in _NAMED and isinstance(value, str):
            named[name] = _special(value, name)
    return named


def _extra(config: Mapping[str, Any]) -> list[AddedToken]:
    name = "extra_special_tokens"
    extra = config.get(name) or config.get("additional_special_tokens") or []
    if not isinstance(extra, (list, dict)):
        raise ValueError(f"tokenizer: {name}: expected a list, got {_brief(extra)}")
    return [
        _special(entry, name) for entry in (extra if isinstance(extra, list) else extra.values())
    ]


def _special(value: Any, name: str) -> AddedToken:
    if isinstance(value, str):
        if not value:
            raise ValueError(f"tokenizer: {name}: expected a token, got an empty text")
        return AddedToken(value, normalized=False)
    return _token(value, name)


def _token(entry: Any, name: str) -> AddedToken:
    content = _content(entry)
    if not isinstance(entry, dict) or not content:
        raise ValueError(f"tokenizer: {name}: expected a token with content, got {_brief(entry)}")
    flags = {flag: entry.get(flag) for flag in (*_FLAGS, "special")}
    wrong = [flag for flag, value in flags.items() if value not in (None, True, False)]
    if wrong:
        raise ValueError(
            f"tokenizer: {name}: {wrong[0]}: expected true or false, got {_brief(flags[wrong[0]])}"
        )
    if flags["normalized"] is None:
        flags["normalized"] = not flags["special"]
    return AddedToken(content, **{flag: bool(flags[flag]) for flag in _FLAGS})


def _content(entry: Any) -> str:
    value = entry.get("content") if isinstance(entry, dict) else entry
    return value if isinstance(value, str) else ""


def _length(value: Any) -> int:
    """model_max_length; files write 1e30 where they mean that none was set."""
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= MAX_LENGTH:
        return DEFAULT_LENGTH
    return value


def _brief(value: Any) -> str:
    """A value in an error message: one line, not too long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
