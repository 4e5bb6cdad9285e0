"""Prompt weights by hand, rows of long prompts, and hidden states that are known."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport import ClipTokenizer, InvalidArgumentError
from sdexport.runtime.text import prompt_weights
from sdexport.runtime.text.added_tokens import AddedToken
from sdexport.runtime.text.prompt_weights import MAX_WEIGHT, Segment, parse_weights
from tests.helpers.text import text_encoder, tokenizer
from tests.tolerances import EMBEDS_REL

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
BRACKETS = st.lists(st.sampled_from([*"()[]\\:.19 aB", "BREAK "]), max_size=40).map("".join)


def encode_weighted(texts: list[str], *, restore_mean: bool = True) -> np.ndarray:
    """Weighted prompts to embeddings, as sdexport.runtime.text_encoders does it."""
    tokens = prompt_weights.tokenize_weighted(tokenizer(), texts)
    return prompt_weights.apply_weights(
        text_encoder(tokens.flat_ids), tokens, restore_mean=restore_mean
    )


def pairs(text: str) -> list[tuple[str, float]]:
    (part,) = parse_weights(text)
    return [(segment.text, round(segment.weight, 9)) for segment in part]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat) here", [("a ", 1), ("cat", 1.1), (" here", 1)]),
        ("a (cat:1.3)", [("a ", 1), ("cat", 1.3)]),
        ("a (cat: 1.3 ) b", [("a ", 1), ("cat", 1.3), (" b", 1)]),
        ("(cat:-0.5)(dog:0)(fox:+.5)", [("cat", -0.5), ("dog", 0), ("fox", 0.5)]),
        ("[cat]", [("cat", round(1 / 1.1, 9))]),
        ("((cat))", [("cat", 1.21)]),
        ("[[cat]]", [("cat", round(1 / 1.21, 9))]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("([cat])", [("cat", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", round(1 / 1.1, 9))]),
        ("(one)(two)", [("onetwo", 1.1)]),
        (r"\(cat\) \[x\] \\", [("(cat) [x] \\", 1)]),
        (r"(a \(b:1.5\):2)", [("a (b:1.5)", 2)]),
        (r"a\b", [("ab", 1)]),
        ("(cat", [("cat", 1.1)]),
        ("a [b (c", [("a ", 1), ("b ", round(1 / 1.1, 9)), ("c", 1)]),
        ("cat)", [("cat)", 1)]),
        ("cat] :1.3)", [("cat] :1.3)", 1)]),
        ("[cat:1.5]", [("cat:1.5", round(1 / 1.1, 9))]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3)", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("a: b", [("a: b", 1)]),
        ("()", [("", 1)]),
        ("", [("", 1)]),
        ("breakfast Break aBREAK", [("breakfast Break aBREAK", 1)]),
        (
            "x (((fox:1.5)) [in] the (snow:0.5), night, (((star))).",
            [
                ("x ", 1),
                ("fox", 1.5 * 1.21 * 1.1 / 1.1),
                (" ", 1.1),
                ("in", 1),
                (" the ", 1.1),
                ("snow", 0.55),
                (", night, ", 1.1),
                ("star", 1.4641),
                (".", 1.1),
            ],
        ),
    ],
)
def test_parse_weights_by_hand(text: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(text) == [(part, round(weight, 9)) for part, weight in expected]


def test_parse_weights_splits_at_break() -> None:
    assert parse_weights("a cat BREAK (a dog BREAK fox:2)BREAK") == [
        [Segment("a cat", 1.0)],
        [Segment("a dog", 2.0)],
        [Segment("fox", 2.0)],
        [],
    ]
    assert parse_weights("BREAK") == [[], []]
    assert parse_weights("a BREAK\t\n BREAK b ") == [
        [Segment("a", 1.0)],
        [],
        [Segment("b ", 1.0)],
    ]


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("(" * 5000 + "x", MAX_WEIGHT),
        ("[" * 20000 + "x", 0.0),
        (f"(x:{'9' * 400})", MAX_WEIGHT),
        (f"(x:-{'9' * 400})", -MAX_WEIGHT),
        (f"((x:{'9' * 400}):0)", 0.0),
    ],
)
def test_parse_weights_clips_weights(text: str, weight: float) -> None:
    assert pairs(text) == [("x", weight)]


@pytest.mark.parametrize("text", ["(a" * 10_000 + "b)" * 10_000, " " * 60_000 + "x"])
def test_parse_weights_of_long_texts_is_fast(text: str) -> None:
    started = time.process_time()
    parse_weights(text)
    assert time.process_time() - started < 5


@given(text=ANY_TEXT | BRACKETS)
def test_parse_weights_never_raises(text: str) -> None:
    for part in parse_weights(text):
        assert all(abs(segment.weight) <= MAX_WEIGHT for segment in part)
        assert all(segment.text for segment in part) or text.strip("()[]\\") == ""


@given(text=ANY_TEXT.filter(lambda text: not set("()[]\\") & set(text) and "BREAK" not in text))
def test_parse_weights_of_plain_text_is_one_segment(text: str) -> None:
    assert parse_weights(text) == [[Segment(text, 1.0)]]


@given(text=ANY_TEXT)
def test_parse_weights_of_escaped_text_is_the_text(text: str) -> None:
    escaped = "".join("\\" + char if char in "()[]\\" else char for char in text)
    if "BREAK" not in text:
        assert parse_weights(escaped) == [[Segment(text, 1.0)]]


@pytest.mark.parametrize("text", ["", "a red circle", "blue " * 75, "3 STARS: x!"])
def test_plain_prompts_have_the_same_embeddings_either_way(text: str) -> None:
    tokens = prompt_weights.tokenize_weighted(tokenizer(), [text])
    np.testing.assert_array_equal(tokens.flat_ids, tokenizer()([text]))
    assert tokens.input_ids.dtype == np.int64 and tokens.weights.dtype == np.float32
    plain = text_encoder(tokenizer()([text]))
    weighted = encode_weighted([text])
    np.testing.assert_array_equal(weighted, plain)


def test_tokenize_weighted_gives_long_prompts_several_rows() -> None:
    tokens = prompt_weights.tokenize_weighted(tokenizer(), ["red " * 80 + "(blue:2)", "circle"])
    assert tokens.input_ids.shape == (2, 2, 77)
    first, second = tokens.input_ids[0]
    (red,), (blue,) = tokenizer().encode("red"), tokenizer().encode("blue")
    assert first.tolist() == [tokenizer().bos_id, *[red] * 75, tokenizer().eos_id]
    assert second[:8].tolist() == [tokenizer().bos_id, *[red] * 5, blue, tokenizer().eos_id]
    assert tokens.weights[0, 1, :8].tolist() == [1, 1, 1, 1, 1, 1, 2, 1]
    np.testing.assert_array_equal(tokens.input_ids[1, 1], tokenizer()([""])[0])
    assert encode_weighted(["red " * 80]).shape == (1, 154, 3)


def test_tokenize_weighted_starts_a_row_at_break() -> None:
    tokens = prompt_weights.tokenize_weighted(tokenizer(), ["red BREAK blue BREAK", "BREAK red"])
    np.testing.assert_array_equal(tokens.input_ids[0], tokenizer()(["red", "blue"]))
    np.testing.assert_array_equal(tokens.input_ids[1], tokenizer()(["", "red"]))


@pytest.mark.parametrize(
    ("backtrack", "first", "second"), [(0, 75, 10), (20, 71, 14), (5, 71, 14), (4, 75, 10)]
)
def test_tokenize_weighted_ends_rows_after_a_comma(backtrack: int, first: int, second: int) -> None:
    text = "red " * 70 + ", " + "blue " * 14
    tokens = prompt_weights.tokenize_weighted(tokenizer(), [text], comma_backtrack=backtrack)
    ends = (tokens.input_ids[0] == tokenizer().eos_id).argmax(axis=1) - 1
    assert ends.tolist() == [first, second]


def test_tokenize_weighted_keeps_the_vectors_of_an_embedding_together() -> None:
    files = tokenizer()
    words = [AddedToken(t) for t in (*files._added, "<toy>", "<toy>_1", "<toy>_2")]
    with_words = ClipTokenizer(files._vocab, files._merges, added_tokens=words)
    for before, first in ((72, 75), (73, 73), (74, 74), (75, 75)):
        text = with_words.expand("red " * before + "<toy> red")
        tokens = prompt_weights.tokenize_weighted(with_words, [text])
        ends = (tokens.input_ids[0] == with_words.eos_id).argmax(axis=1) - 1
        assert ends.tolist() == [first, before + 4 - first], before


def test_tokenize_weighted_pads_with_the_pad_token() -> None:
    files = tokenizer()
    other = ClipTokenizer(files._vocab, files._merges, pad_token="!")
    tokens = prompt_weights.tokenize_weighted(other, ["a (red:1.5) circle"])
    np.testing.assert_array_equal(tokens.flat_ids, other(["a red circle"]))
    assert tokens.flat_ids[0, -1] == other.pad_id != other.eos_id


def test_apply_weights_scales_tokens_and_keeps_the_mean() -> None:
    tokens = prompt_weights.tokenize_weighted(tokenizer(), ["a (red:1.5) circle", "a circle"])
    hidden = text_encoder(tokens.flat_ids)
    embeds = prompt_weights.apply_weights(hidden, tokens)
    np.testing.assert_array_equal(embeds[1], hidden[1])
    assert embeds[0].mean() == pytest.approx(hidden[0].mean(), rel=EMBEDS_REL)
    ratio = embeds[0] / hidden[0]
    scale = ratio[0, 0]
    expected = np.full((77, 3), scale)
    expected[2] *= 1.5
    np.testing.assert_allclose(ratio, expected, rtol=EMBEDS_REL)
    without = prompt_weights.apply_weights(hidden, tokens, restore_mean=False)
    np.testing.assert_allclose(without[0] / hidden[0], expected / scale, rtol=EMBEDS_REL)


def test_apply_weights_treats_prompts_independently() -> None:
    both = encode_weighted(["a (red:1.5) circle", "(blue:0.2) star"])
    np.testing.assert_array_equal(both[:1], encode_weighted(["a (red:1.5) circle"]))
    np.testing.assert_array_equal(both[1:], encode_weighted(["(blue:0.2) star"]))


def test_apply_weights_of_zero_mean_gives_finite_numbers() -> None:
    tokens = prompt_weights.tokenize_weighted(tokenizer(), ["(red:0)"])
    hidden = np.zeros((1, 77, 3), dtype=np.float32)
    hidden[0, 2] = 1
    ids = tokens.input_ids.copy()
    weights = tokens.weights.copy()
    weights[0, 0, 2] = 0
    embeds = prompt_weights.apply_weights(hidden, prompt_weights.WeightedTokens(ids, weights))
    np.testing.assert_array_equal(embeds, np.zeros((1, 77, 3)))


def test_other_arguments_are_rejected() -> None:
    with pytest.raises(InvalidArgumentError, match="expected a list of prompts"):
        prompt_weights.tokenize_weighted(tokenizer(), "a")
    with pytest.raises(InvalidArgumentError, match="expected a string, got int"):
        prompt_weights.tokenize_weighted(tokenizer(), [3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="got 0 prompts"):
        prompt_weights.tokenize_weighted(tokenizer(), [])
    with pytest.raises(ValueError, match="comma_backtrack of 0 or more"):
        prompt_weights.tokenize_weighted(tokenizer(), ["a"], comma_backtrack=-1)
    tokens = prompt_weights.tokenize_weighted(tokenizer(), ["a"])
    with pytest.raises(ValueError, match=r"expected hidden states float32 \(1, 77, width\)"):
        prompt_weights.apply_weights(np.zeros((2, 77, 3), dtype=np.float32), tokens)
    with pytest.raises(ValueError, match="got float64"):
        prompt_weights.apply_weights(np.zeros((1, 77, 3)), tokens)
