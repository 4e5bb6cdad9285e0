"""Merges by hand, and a tokenizer's files. Equality with transformers is in tests/parity."""

from __future__ import annotations

import functools
import json
import logging
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport import CheckpointError, ClipTokenizer, InvalidArgumentError, PackageError
from sdexport.demo_model import MODEL_DIR
from sdexport.runtime.text import normalization, tokenizer_files
from sdexport.runtime.text.bpe import Merges, join_long, join_short

RANKS = {"l o": 0, "lo w</w>": 1, "e r</w>": 2, "a a": 3, "aa aa": 4}


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
def test_merges_apply_lowest_rank_first_then_leftmost(
    symbols: list[str], expected: list[str]
) -> None:
    assert join_short(symbols, RANKS) == expected
    assert join_long(symbols, RANKS) == expected


@given(
    lines=st.lists(
        st.tuples(st.text("ab", min_size=1, max_size=3), st.text("ab", min_size=1, max_size=3)),
        max_size=12,
        unique_by=lambda pair: pair[0] + pair[1],
    ),
    token=st.text("ab", min_size=1, max_size=9),
)
def test_is_whole_implies_that_merging_gives_one_token(
    lines: list[tuple[str, str]], token: str
) -> None:
    """For any list of merges, also one that no training gives."""
    merges = Merges([f"{left} {right}" for left, right in lines])
    joined = join_long(list(token), merges.ranks)
    assert join_short(list(token), merges.ranks) == joined
    assert joined == [token] or not merges.is_whole(token)


def test_is_whole_of_every_trained_token(checkpoint: Path) -> None:
    """Otherwise the fast path would seldom be taken."""
    files = tokenizer_files.read(checkpoint / "tokenizer", PackageError)
    assert len(files.merges.products) > 50
    assert all(files.merges.is_whole(token) for token in files.merges.products)


def test_merges_of_a_very_long_word_are_fast() -> None:
    started = time.process_time()
    assert len(join_long(["a"] * 100_000, RANKS)) == 25_000
    assert time.process_time() - started < 5


def test_call_adds_special_tokens_and_padding(folder: Path) -> None:
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
    assert (
        "10000 tokens is truncated to the first 75; the rest is ignored: 'circle circle"
        in caplog.text
    )


def test_call_warns_once_with_the_truncated_text(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = ClipTokenizer.from_folder(folder)
    prompt = "red " * 75 + "Blue\nCIRCLE 3"
    with caplog.at_level(logging.WARNING):
        tokenizer([prompt, "a circle", prompt])
    assert [record.getMessage() for record in caplog.records] == [
        f"prompt of {75 + len(tokenizer.encode('blue circle 3'))} tokens is truncated to the "
        "first 75; the rest is ignored: 'blue circle 3'"
    ]
    assert tokenizer.truncated_text(prompt) == "blue circle 3"
    assert tokenizer.truncated_text("red " * 75) == ""


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_decode_inverts_encode_up_to_spaces(text: str) -> None:
    tokenizer = _demo_tokenizer()
    expected = normalization.normalize(text)
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert re.sub(r"\s", "", decoded) == re.sub(r"\s", "", expected)


def test_decode_rejects_unknown_ids() -> None:
    with pytest.raises(ValueError, match="no token has the id 10000000"):
        _demo_tokenizer().decode([10_000_000])


@functools.cache
def _demo_tokenizer() -> ClipTokenizer:
    return ClipTokenizer.from_folder(MODEL_DIR / "tokenizer")


def test_call_rejects_other_types(folder: Path) -> None:
    tokenizer = ClipTokenizer.from_folder(folder)
    with pytest.raises(InvalidArgumentError, match="expected a list of prompts"):
        tokenizer("a red circle")
    with pytest.raises(InvalidArgumentError, match="expected a string, got int"):
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


def test_from_folder_reads_pad_token_and_length(folder: Path) -> None:
    config = {"pad_token": {"content": "!"}, "model_max_length": 20}
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert list(ClipTokenizer.from_folder(folder)([""])[0, 2:]) == [0] * 18


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", "vocab.json is damaged"),
        ("vocab.json", "[1, 2]", "holds no JSON object"),
        ("vocab.json", '{"a": 0}', "do not match"),
        ("vocab.json", '{"a": "b"}', "gives 'a' no valid id"),
        ("merges.txt", "#version: 0.2\na b c\n", "merge 1 is not a pair"),
        ("merges.txt", "#version: 0.2\nzz qq\n", "'zz' \\+ 'qq' is not in the vocabulary"),
        ("merges.txt", "#version: 0.2\na\n", "merge 1 is not a pair: 'a'"),
        ("vocab.json", '{"a": true}', "gives 'a' no valid id: True"),
        ("vocab.json", '{"a": 1.0}', "gives 'a' no valid id"),
        ("vocab.json", '{"a": NaN}', "gives 'a' no valid id"),
        ("vocab.json", '{"a": null}', "gives 'a' no valid id"),
        ("vocab.json", '{"a": -1}', "gives 'a' no valid id"),
        ("vocab.json", '{"a": 99999999999}', "gives 'a' no valid id"),
        ("vocab.json", '{"a": 1, "b": 1}', "one id to several tokens"),
        ("vocab.json", "{}", "do not match"),
        ("vocab.json", "[" * 100_000, "vocab.json is damaged"),
        ("tokenizer_config.json", "<html>", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", "null", "holds no JSON object"),
        ("tokenizer_config.json", '{"pad_token": {}}', "pad_token: expected a token with content"),
        ("tokenizer_config.json", '{"pad_token": ["!"]}', "pad_token: expected a token"),
        ("tokenizer_config.json", '{"pad_token": 3}', "pad_token: expected a token"),
        ("tokenizer_config.json", '{"pad_token": ""}', "pad_token: expected a token"),
        ("tokenizer_config.json", '{"pad_token": "[PAD]"}', r"vocabulary has no \[PAD\]"),
        ("tokenizer_config.json", '{"pad_token": {"content": 3}}', "pad_token: expected a token"),
        (
            "tokenizer_config.json",
            '{"pad_token": {"content": "!", "lstrip": "no"}}',
            "lstrip: expected true or false, got 'no'",
        ),
        ("tokenizer_config.json", '{"extra_special_tokens": 3}', "expected a list, got 3"),
        ("tokenizer_config.json", '{"extra_special_tokens": [3]}', "expected a token"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "expected a JSON object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"-1": {}}}', "'-1' is not an id"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "'x' is not an id"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": {}}}', "token with content"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": "x"}}', "token with content"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"99999999999": {}}}', "is not an id"),
        ("added_tokens.json", "[]", "holds no JSON object"),
        ("added_tokens.json", '{"<a>": -1}', "'<a>' has no valid id: -1"),
        ("added_tokens.json", '{"<a>": "7"}', "'<a>' has no valid id: '7'"),
        ("added_tokens.json", '{"<a>": true}', "'<a>' has no valid id: True"),
        ("added_tokens.json", '{"<a>": 1e30}', "'<a>' has no valid id"),
        ("added_tokens.json", '{"<a>": 7, "<b>": 7}', "one id to several tokens"),
        ("tokenizer.json", "{}", "holds no byte-pair model"),
        ("tokenizer.json", '{"model": {"vocab": []}}', "holds no byte-pair model"),
        ("tokenizer.json", '{"model": {"vocab": {}}}', "expected a list of merges, got None"),
        ("tokenizer.json", '{"model": {"vocab": {}, "merges": null}}', "list of merges, got None"),
        ("tokenizer.json", '{"model": {"vocab": {}, "merges": "a b"}}', "list of merges, got 'a"),
        ("tokenizer.json", '{"model": {"vocab": {}, "merges": [3]}}', "merge 1 is not a pair: 3"),
        (
            "tokenizer.json",
            '{"model": {"vocab": {}, "merges": [["a", 3]]}}',
            r"merge 1 is not a pair: \['a', 3\]",
        ),
        (
            "tokenizer.json",
            '{"model": {"vocab": {}, "merges": []}, "added_tokens": {}}',
            "expected a list of added_tokens",
        ),
    ]
    + [
        (
            "tokenizer.json",
            '{"model": {"vocab": {}, "merges": []}, "added_tokens": [' + entry + "]}",
            "(added_tokens: .*(has no valid id|token with content|more than once|true or false))",
        )
        for entry in (
            "3",
            "{}",
            '{"id": 7}',
            '{"content": "a"}',
            '{"content": "a", "id": -1}',
            '{"content": "a", "id": true}',
            '{"content": "a", "id": "7"}',
            '{"content": "a", "id": 1e30}',
            '{"content": "a", "id": 3000000000}',
            '{"content": "a", "id": 7, "special": "x"}',
            '{"content": "a", "id": 7}, {"content": "b", "id": 7}',
        )
    ],
)
def test_from_folder_rejects_damaged_files(
    folder: Path, name: str, content: str, message: str
) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(PackageError, match=message) as caught:
        ClipTokenizer.from_folder(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(CheckpointError, match=message):
        ClipTokenizer.from_folder(folder, error=CheckpointError)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "length", ["1e30", "1" + "0" * 30, "NaN", "-5", "true", '"77"', "null", "1"]
)
def test_from_folder_replaces_impossible_lengths_by_77(folder: Path, length: str) -> None:
    (folder / "tokenizer_config.json").write_text(f'{{"model_max_length": {length}}}')
    assert ClipTokenizer.from_folder(folder).max_length == 77


def test_from_folder_rejects_binary_merges_and_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "merges.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PackageError, match="not UTF-8"):
        ClipTokenizer.from_folder(folder)
    with pytest.raises(PackageError, match=r"expected vocab\.json and merges\.txt"):
        ClipTokenizer.from_folder(tmp_path / "nowhere")


def test_constructor_rejects_a_vocabulary_without_special_tokens() -> None:
    with pytest.raises(InvalidArgumentError, match=r"the vocabulary has no <\|startoftext\|>"):
        ClipTokenizer({"a": 0}, [])
