"""Token ids compared with transformers' Rust tokenizer: they must be equal."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdexport import ClipTokenizer, PackageError
from sdexport.runtime.text import bpe, tokenizer_files
from sdexport.runtime.text import unicode_tables as committed
from tests.helpers import make_unicode_tables
from tests.helpers.random_strings import HAND_PICKED, random_string
from tests.helpers.vocabularies import PRESENT, VOCABULARIES


def both(name: str) -> tuple[ClipTokenizer, CLIPTokenizer]:
    folder = VOCABULARIES[name]
    return ClipTokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(folder)


def assert_equal_ids(ours: ClipTokenizer, theirs: CLIPTokenizer, texts: list[str]) -> None:
    expected = theirs(texts, add_special_tokens=False).input_ids
    for text, ids in zip(texts, expected, strict=True):
        assert ours.encode(text) == ids, f"{text.encode('unicode_escape')!r}"


def compare_random(name: str, count: int) -> None:
    ours, theirs = both(name)
    rng = random.Random(f"{name}{count}")
    for start in range(0, count, 1000):
        texts = [random_string(rng) for _ in range(min(1000, count - start))]
        assert_equal_ids(ours, theirs, texts)


@pytest.mark.filterwarnings("ignore:Token indices sequence length")
@pytest.mark.parametrize("name", PRESENT)
def test_token_ids_of_hand_picked_strings(name: str) -> None:
    assert_equal_ids(*both(name), list(HAND_PICKED))


@pytest.mark.parametrize("name", PRESENT)
def test_token_ids_of_20000_random_strings(name: str) -> None:
    compare_random(name, 20_000)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", PRESENT)
def test_token_ids_of_a_million_random_strings(name: str) -> None:
    compare_random(name, 1_000_000)


@settings(max_examples=500, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_token_ids_of_any_text(text: str) -> None:
    ours, theirs = _CACHED
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", PRESENT)
def test_merging_gives_every_token_back_and_is_whole_finds_nearly_all(name: str) -> None:
    """For tokens of repeated characters, such as "....", is_whole may return False."""
    merges = tokenizer_files.read(VOCABULARIES[name], PackageError).merges
    for token in merges.products:
        letters = list(token.removesuffix(bpe.END))
        letters[-1] += bpe.END if token.endswith(bpe.END) else ""
        assert merges.apply(letters) == [token]
    whole = sum(map(merges.is_whole, merges.products))
    assert whole > 0.99 * len(merges.products)


@pytest.mark.parametrize("name", PRESENT)
def test_rows_equal_transformers_padding_and_truncation(name: str) -> None:
    assert_equal_rows(VOCABULARIES[name])


def assert_equal_rows(folder: Path) -> None:
    ours, theirs = ClipTokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(folder)
    expected = theirs(ROWS, padding="max_length", max_length=77, truncation=True).input_ids
    assert ours(ROWS).tolist() == expected


ROWS = ["", "a red circle!", "word " * 90, "x<|endoftext|>y ! <|ENDOFTEXT|>", "word " * 75]
OLD = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
AS_SAVED = {"__type": "AddedToken", **OLD}
PUBLISHED = {
    "SD 1.x": (
        {"bos_token": {"content": BOS, **AS_SAVED}, "eos_token": {"content": EOS, **AS_SAVED}}
        | {"unk_token": {"content": EOS, **AS_SAVED}, "pad_token": EOS},
        {"bos_token": {"content": BOS, **OLD}, "eos_token": {"content": EOS, **OLD}}
        | {"unk_token": {"content": EOS, **OLD}, "pad_token": EOS},
    ),
    "SD 2.x and SDXL's second": (
        {"bos_token": {"content": BOS, **AS_SAVED}, "eos_token": {"content": EOS, **AS_SAVED}}
        | {"unk_token": {"content": EOS, **AS_SAVED}, "pad_token": "!"},
        {"bos_token": {"content": BOS, **OLD}, "eos_token": {"content": EOS, **OLD}}
        | {"unk_token": {"content": EOS, **OLD}, "pad_token": "!"},
    ),
    "saved by transformers 4.40": (
        {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": "!"}
        | {
            "added_tokens_decoder": {
                "0": {"content": "!", **OLD, "normalized": False, "special": True},
                "BOS": {"content": BOS, **OLD, "special": True},
                "EOS": {"content": EOS, **OLD, "special": True},
            }
        },
        None,
    ),
}


def write_folder(source: Path, folder: Path, **files: object) -> Path:
    """Copy vocabulary and merges to a new folder, and write the other files."""
    folder.mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((source / name).read_bytes())
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("name", PRESENT)
def test_rows_with_the_special_tokens_of_published_checkpoints(
    name: str, kind: str, tmp_path: Path
) -> None:
    config, special_map = PUBLISHED[kind]
    vocab = json.loads((VOCABULARIES[name] / "vocab.json").read_text(encoding="utf-8"))
    decoder = {
        str(vocab[entry["content"]]): entry
        for entry in config.get("added_tokens_decoder", {}).values()
    }
    config = config | ({"added_tokens_decoder": decoder} if decoder else {})
    files = {"tokenizer_config": config, "special_tokens_map": special_map}
    assert_equal_rows(write_folder(VOCABULARIES[name], tmp_path, **files))


def as_tokenizer_json(folder: Path, added: list[dict[str, object]]) -> dict[str, object]:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    model = {"type": "BPE", "vocab": vocab, "merges": [line.split(" ") for line in lines[1:]]}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    return {
        "version": "1.0",
        **parts,
        "post_processor": None,
        "added_tokens": added,
        "model": model,
    }


CONTENTS = ["<cat-toy>", "<Dog>", "<do", "red", "!", "!!", "é", "<a  b>", " x", "x ", "ſ", "Σ"]
PARTS = [*CONTENTS, " ", "  ", "\t", "a", "_", "-", "\u0301", "<", ">", "<CAT-TOY>", "dog", EOS]
PARTS += ["É", BOS.upper(), "½", "Ⅷ", "\u200d", "Ⓐ", "\u3000", "e", "'s", "CIRCLE"]


@pytest.mark.parametrize("way", ["added_tokens", "decoder", "tokenizer_json", "extra", "map"])
@pytest.mark.parametrize("round_", range(4))
def test_token_ids_with_added_tokens(way: str, round_: int, tmp_path: Path) -> None:
    """Tokens with any flags, in each file that can hold them, in texts made of parts of them."""
    rng = random.Random(f"{way}{round_}")
    source = VOCABULARIES["demo"]
    vocab = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    contents = rng.sample(CONTENTS, 6)
    ids = itertools.count(len(vocab))
    numbers = {c: vocab[c] if c in vocab else next(ids) for c in contents}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    entries = {c: {"content": c, **{flag: rng.random() < 0.4 for flag in flags}} for c in contents}
    config: dict[str, object] = {"pad_token": rng.choice(["!", EOS])}
    files: dict[str, object] = {}
    if way == "added_tokens":
        files["added_tokens"] = numbers
        config["additional_special_tokens"] = contents[:2]
    elif way == "decoder":
        config["added_tokens_decoder"] = {str(numbers[c]): entries[c] for c in contents}
    elif way == "tokenizer_json":
        added = [{"id": numbers[c], **entries[c]} for c in contents]
        files["tokenizer"] = as_tokenizer_json(source, sorted(added, key=lambda t: t["id"]))
    elif way == "extra":
        config["extra_special_tokens"] = contents
    else:
        entry = {key: value for key, value in entries[contents[0]].items() if key != "special"}
        files["special_tokens_map"] = {"mask_token": entry, "cls_token": contents[1]}
        config["cat_token"] = contents[2]
    folder = write_folder(source, tmp_path, tokenizer_config=config, **files)
    ours, theirs = ClipTokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(folder)
    texts = ["".join(rng.choices(PARTS, k=rng.randint(1, 12))) for _ in range(1500)]
    assert_equal_ids(ours, theirs, texts)
    assert ours.vocab_size == len(theirs)


def test_unicode_tables_match_the_installed_tokenizer() -> None:
    """Queries the Rust tokenizer for every code point again."""
    letters, numbers = make_unicode_tables.classes()
    assert make_unicode_tables.packed(letters) == committed.LETTERS
    assert make_unicode_tables.packed(numbers) == committed.NUMBERS
    assert make_unicode_tables.packed(make_unicode_tables.marks()) == committed.MARKS


_CACHED = both(PRESENT[-1])
