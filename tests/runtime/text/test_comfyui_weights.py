"""ComfyUI's weights by hand, its rows of long prompts, and its interpolation."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
from hypothesis import given

from sdexport import ClipTokenizer
from sdexport.runtime.text.added_tokens import AddedToken
from sdexport.runtime.text.comfyui_weights import interpolate, parse_comfyui, tokenize_comfyui
from sdexport.runtime.text.prompt_weights import MAX_WEIGHT
from tests.helpers.prompts import ANY_PROMPT
from tests.helpers.text import text_encoder, tokenizer
from tests.tolerances import EMBEDS_REL


def pairs(text: str) -> list[tuple[str, float]]:
    return [(segment.text, round(segment.weight, 9)) for segment in parse_comfyui(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat) here", [("a ", 1), ("cat", 1.1), (" here", 1)]),
        ("a (cat:1.3)", [("a ", 1), ("cat", 1.3)]),
        ("((cat))", [("cat", 1.21)]),
        ("((cat:1.2):1.5)", [("cat", 1.2)]),  # a number inside replaces, it does not multiply
        ("(a (b:2) c:3)", [("a ", 3), ("b", 2), (" c", 3)]),
        ("(a (b) c:3)", [("a ", 3), ("b", 3.3), (" c", 3)]),
        ("[cat] [[dog]]", [("[cat] [[dog]]", 1)]),  # square brackets are text
        (r"\(cat\) (\(x\):0.5)", [("(cat) ", 1), ("(x)", 0.5)]),
        (r"a\\b", [(r"a\\b", 1)]),
        ("(cat", [("(cat", 1)]),
        ("cat) (dog)", [("cat) (dog)", 1)]),
        ("((cat)", [("(cat", 1.1)]),
        ("(a:b:2)", [("a:b", 2)]),
        ("(:2)", [(":2", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:nan)(b:inf)(c:1e999)", [("a:nan", 1.1), ("b:inf", 1.1), ("c:1e999", 1.1)]),
        ("(a:1e9)", [("a", MAX_WEIGHT)]),
        ("()", []),
        ("", []),
    ],
)
def test_parse_by_hand(text: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(text) == expected


def test_rows_of_a_long_prompt() -> None:
    """A segment of 8 tokens or more is divided where the row is full, a shorter one is not."""
    tokens = tokenize_comfyui(tokenizer(), ["red " * 80])
    ends = (tokens.input_ids[0] == tokenizer().eos_id).argmax(axis=1) - 1
    assert ends.tolist() == [75, 5]
    tokens = tokenize_comfyui(tokenizer(), ["red " * 70 + "(" + "blue " * 6 + ":1.5) red"])
    ends = (tokens.input_ids[0] == tokenizer().eos_id).argmax(axis=1) - 1
    assert ends.tolist() == [70, 7]
    assert tokens.weights[0, 1, :9].tolist() == [1, *[1.5] * 6, 1, 1]
    tokens = tokenize_comfyui(tokenizer(), ["red " * 70 + "(" + "blue " * 8 + ":1.5)"])
    ends = (tokens.input_ids[0] == tokenizer().eos_id).argmax(axis=1) - 1
    assert ends.tolist() == [75, 3]


@pytest.mark.parametrize("text", ["", "a red circle", "blue " * 75, "a [red] circle"])
def test_prompts_without_weights_have_the_ids_of_plain_ones(text: str) -> None:
    tokens = tokenize_comfyui(tokenizer(), [text])
    np.testing.assert_array_equal(tokens.flat_ids, tokenizer()([text]))
    assert (tokens.weights == 1).all()


def test_embeddings_by_name(caplog: pytest.LogCaptureFixture) -> None:
    files = tokenizer()
    words = [AddedToken(t) for t in (*files._added, "<toy>", "<toy>_1", "moss")]
    with_words = ClipTokenizer(files._vocab, files._merges, added_tokens=words)
    toy = with_words.encode("<toy> <toy>_1")
    red, moss = files.encode("red")[0], with_words.encode("moss")[0]
    for text, expected in (
        ("red embedding:toy red", [red, *toy, red]),
        ("embedding:toy.safetensors, red", [*toy, *files.encode(","), red]),
        ("(embedding:moss:1.2)", [moss]),
        ("red\nembedding:moss", [red, moss]),
        ("red embedding:gone red", [red, red]),
    ):
        ids = tokenize_comfyui(with_words, [text]).flat_ids[0]
        assert ids[1 : len(expected) + 2].tolist() == [*expected, with_words.eos_id], text
    assert "there is no embedding 'gone', it is left out" in caplog.text
    assert caplog.record_tuples[0][1] == logging.WARNING


def test_interpolation_by_hand() -> None:
    """z = (z - z_empty) * w + z_empty for each token; the others stay, bit for bit."""
    tokens = tokenize_comfyui(tokenizer(), ["a (red:1.5) (circle:0)", "a circle"])
    hidden, empty = text_encoder(tokens.flat_ids), text_encoder(tokenizer()(["", ""]))
    embeds = interpolate(hidden, empty, tokens)
    np.testing.assert_array_equal(embeds[1], hidden[1])
    np.testing.assert_array_equal(
        embeds[0, [0, 1, *range(4, 77)]], hidden[0, [0, 1, *range(4, 77)]]
    )
    expected = empty[0, 2] + 1.5 * (hidden[0, 2] - empty[0, 2])
    np.testing.assert_allclose(embeds[0, 2], expected, rtol=EMBEDS_REL)
    np.testing.assert_allclose(embeds[0, 3], empty[0, 3], rtol=EMBEDS_REL)


@pytest.mark.parametrize(
    "text", ["(" * 10_000 + "a" + ")" * 10_000, "(" * 20_000, ")" * 20_000, "(a:1" * 5_000]
)
def test_many_brackets_are_fast(text: str) -> None:
    started = time.process_time()
    tokenize_comfyui(tokenizer(), [text])
    assert time.process_time() - started < 5


@given(text=ANY_PROMPT)
def test_any_text_is_parsed(text: str) -> None:
    tokens = tokenize_comfyui(tokenizer(), [text])
    assert np.isfinite(tokens.weights).all() and abs(tokens.weights).max() <= MAX_WEIGHT
