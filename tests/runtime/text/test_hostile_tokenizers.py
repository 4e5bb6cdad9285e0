"""Tokenizer files that ask for memory or time: one line each, within 200 MB and a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdexport import ClipTokenizer, InvalidArgumentError
from sdexport.runtime.text.tokenizer_files import MAX_ADDED
from tests.helpers.limited_process import assert_malformed, outcomes

VOCAB = {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}


def folder(path: Path, **files: Any) -> Path:
    """A tokenizer's folder: JSON files by name, and `merges` as lines or text."""
    path.mkdir()
    lines = files.pop("merges", "")
    (path / "merges.txt").write_text(lines, encoding="utf-8")
    for name, content in {"vocab": VOCAB, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / f"{name}.json").write_text(text, encoding="utf-8")
    return path


def added(contents: list[str]) -> dict[str, Any]:
    entries = {str(10 + number): {"content": text} for number, text in enumerate(contents)}
    return {"added_tokens_decoder": entries}


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a vocabulary of 8 MB": ({"vocab": "{" + " " * 2**23 + "}"}, "bytes; at most 6,291,456"),
    "two million lists": (
        {"tokenizer": '{"model": {"vocab": {}, "merges": [' + "[]," * 2_000_000 + "[]]}}"},
        "more than 400,000 lists",
    ),
    "a million numbers": ({"vocab": '{"a": [' + "1," * 2_000_000 + "1]}"}, "1,500,000 values"),
    "nested lists": ({"tokenizer": "[" * 300_000}, "is damaged: maximum recursion depth"),
    "many merges": ({"merges": "a a\n" * 400_000}, "400,000 merges, and at most 300,000"),
    "a number of a million digits": ({"vocab": '{"a": ' + "9" * 10**6 + "}"}, "is damaged"),
    "many added tokens": (
        {"tokenizer_config": added([f"t{i}" for i in range(MAX_ADDED)])},
        "20,004 added tokens of",
    ),
    "a long added token": (
        {"tokenizer_config": added(["x" * 1_000_000])},
        "characters; at most 20,000 of 400,000",
    ),
    "added tokens that begin alike": (
        {"tokenizer_config": added(["x" * i for i in range(1, 2000)])},
        "characters; at most 20,000 of 400,000",
    ),
    "a huge id": ({"vocab": {**VOCAB, "b": 10**12}}, "'b' no valid id: 1000000000000"),
    "an added token with a huge id": ({"added_tokens": {"b": 10**12}}, "no valid id"),
}


def test_hostile_tokenizers(tmp_path: Path) -> None:
    read = "sdexport.runtime.text.tokenizer:ClipTokenizer.from_folder"
    paths = [folder(tmp_path / str(i), **files) for i, (files, _) in enumerate(HOSTILE.values())]
    for found, path, (_, message) in zip(
        outcomes([(read, path) for path in paths]), paths, HOSTILE.values(), strict=True
    ):
        assert_malformed(found, "PackageError")
        assert message in found.text and str(path) in found.text, found


def test_largest_tokenizer_is_read(tmp_path: Path) -> None:
    contents = [f"<t{number}>" for number in range(MAX_ADDED - 4)]
    path = folder(tmp_path / "tokenizer", tokenizer_config=added(contents))
    tokenizer = ClipTokenizer.from_folder(path)
    assert tokenizer.encode("a <t19995> a") == [1, 19_999, 1]


def test_textual_inversions_are_not_written_out_without_end(tmp_path: Path) -> None:
    contents = [name for i in range(100) for name in (chr(0x4E00 + i), f"{chr(0x4E00 + i)}_1")]
    tail = [f"{chr(0x4E00 + i)}_{n}" for i in range(100) for n in range(2, 60)]
    path = folder(tmp_path / "tokenizer", tokenizer_config=added([*contents, *tail]))
    tokenizer = ClipTokenizer.from_folder(path)
    assert tokenizer.expand("\u4e00").count("\u4e00") == 60
    with pytest.raises(InvalidArgumentError, match="more than 1,000,000 characters"):
        tokenizer.expand("\u4e00" * 10_000)
