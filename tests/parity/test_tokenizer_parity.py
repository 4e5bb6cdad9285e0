"""Token ids against transformers' Rust tokenizer: no difference is tolerated."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from runtime import ClipTokenizer
from runtime import unicode_tables as committed
from sdexport.shapes import MODEL_DIR
from tests.parity import make_unicode_tables
from tests.parity.strings import HAND_PICKED, random_string

REAL = Path(
    os.environ.get("CLIP_TOKENIZER", Path(__file__).parents[3] / "shared" / "clip-tokenizer")
)
VOCABULARIES = {"embedded": MODEL_DIR / "tokenizer", "real": REAL}
PRESENT = [name for name, folder in VOCABULARIES.items() if (folder / "vocab.json").is_file()]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESENT)
def test_token_ids_of_a_million_random_strings(name: str) -> None:
    compare_random(name, 1_000_000)


@settings(max_examples=500, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_token_ids_of_any_text(text: str) -> None:
    ours, theirs = _CACHED
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", PRESENT)
def test_rows_are_padded_and_truncated_alike(name: str) -> None:
    ours, theirs = both(name)
    texts = ["", "a red circle", "word " * 90, "x<|endoftext|>y", "word " * 75]
    expected = theirs(texts, padding="max_length", max_length=77, truncation=True).input_ids
    assert ours(texts).tolist() == expected


def test_unicode_tables_are_those_of_the_installed_tokenizer() -> None:
    """Asks the Rust tokenizer about every code point again."""
    letters, numbers = make_unicode_tables.classes()
    assert make_unicode_tables.packed(letters) == committed.LETTERS
    assert make_unicode_tables.packed(numbers) == committed.NUMBERS
    assert make_unicode_tables.packed(make_unicode_tables.marks()) == committed.MARKS


_CACHED = both(PRESENT[-1])
