"""Hand-computed merges, files of every kind; equality with transformers is in tests/parity."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from runtime import ClipTokenizer
from runtime.tokenizer import merge

RANKS = {("l", "o"): 0, ("lo", "w</w>"): 1, ("e", "r</w>"): 2, ("a", "a"): 3, ("aa", "aa"): 4}


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    target = tmp_path / "tokenizer"
    target.mkdir()
    for file in (checkpoint / "tokenizer").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        (["l", "o", "w</w>"], ["low</w>"]),
        (["l", "o", "w", "e", "r</w>"], ["lo", "w", "er</w>"]),
        (["a", "a", "a"], ["aa", "a"]),
        (["a", "a", "a", "a", "a"], ["aaaa", "a"]),
        (["x</w>"], ["x</w>"]),
    ],
)
def test_merge_by_rank_then_from_the_left(symbols: list[str], expected: list[str]) -> None:
    assert merge(symbols, RANKS) == expected


def test_merge_of_a_very_long_word_is_quick() -> None:
    started = time.perf_counter()
    assert len(merge(["a"] * 100_000, RANKS)) == 25_000
    assert time.perf_counter() - started < 5


def test_call_pads_and_frames(folder: Path) -> None:
    tokenizer = ClipTokenizer.from_folder(folder)
    ids = tokenizer(["a red circle", ""])
    assert ids.shape == (2, 77) and ids.dtype == np.int64
    assert ids[0, 0] == tokenizer.bos_id and list(ids[0, 4:]) == [tokenizer.eos_id] * 73
    assert list(ids[1]) == [tokenizer.bos_id] + [tokenizer.eos_id] * 76
    assert list(ids[0, 1:4]) == tokenizer.encode("A  RED\n circle")


def test_call_truncates_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = ClipTokenizer.from_folder(folder)
    with caplog.at_level(logging.WARNING):
        ids = tokenizer(["circle " * 10_000])
    assert ids[0, -1] == tokenizer.eos_id and len(set(ids[0, 1:-1])) == 1
    assert "10000 tokens is cut to the first 75" in caplog.text


def test_call_refuses_other_types(folder: Path) -> None:
    tokenizer = ClipTokenizer.from_folder(folder)
    with pytest.raises(TypeError, match="expected a list of prompts"):
        tokenizer("a red circle")
    with pytest.raises(TypeError, match="expected a string, got int"):
        tokenizer([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="lone surrogate at 2"):
        tokenizer(["a \ud800 b"])


def test_from_folder_reads_tokenizer_json(folder: Path) -> None:
    expected = ClipTokenizer.from_folder(folder).encode("a small red circle, 3 stars!")
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    added = [
        {"id": vocab.pop(token), "content": token} for token in ("<|startoftext|>", "<|endoftext|>")
    ]
    for shape in (merges, [line.split(" ") for line in merges]):
        data = {"model": {"vocab": vocab, "merges": shape}, "added_tokens": added}
        (folder / "vocab.json").unlink(missing_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
        assert ClipTokenizer.from_folder(folder).encode("a small red circle, 3 stars!") == expected


def test_from_folder_takes_the_pad_token(folder: Path) -> None:
    config = {"pad_token": {"content": "!"}, "model_max_length": 20}
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert list(ClipTokenizer.from_folder(folder)([""])[0, 2:]) == [0] * 18


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", "vocab.json is damaged"),
        ("vocab.json", "[1, 2]", "holds no JSON object"),
        ("vocab.json", '{"a": 0}', "do not belong together"),
        ("vocab.json", '{"a": "b"}', "something else than ids"),
        ("merges.txt", "#version: 0.2\na b c\n", "merge 1 is no pair"),
        ("merges.txt", "#version: 0.2\nzz qq\n", "'zz' \\+ 'qq' makes no token"),
        ("tokenizer_config.json", "<html>", "tokenizer_config.json is damaged"),
    ],
)
def test_from_folder_refuses_damaged_files(
    folder: Path, name: str, content: str, message: str
) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ClipTokenizer.from_folder(folder)


def test_from_folder_refuses_binary_merges_and_no_files(folder: Path, tmp_path: Path) -> None:
    (folder / "merges.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8"):
        ClipTokenizer.from_folder(folder)
    with pytest.raises(FileNotFoundError, match=r"expected vocab\.json and merges\.txt"):
        ClipTokenizer.from_folder(tmp_path / "nowhere")


def test_vocabulary_without_special_tokens() -> None:
    with pytest.raises(ValueError, match=r"the vocabulary has no <\|startoftext\|>"):
        ClipTokenizer({"a": 0}, [])
