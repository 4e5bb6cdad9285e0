"""Compel's syntax by hand, and prompts that could take long or fail."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given

from sdexport import InvalidArgumentError
from sdexport.runtime.text.compel_embeds import encode_compel
from sdexport.runtime.text.compel_parser import parse_compel
from sdexport.runtime.text.prompt_embeds import TextEmbeds
from sdexport.runtime.text.prompt_weights import MAX_WEIGHT
from tests.helpers.prompts import ANY_PROMPT
from tests.helpers.text import text_encoder, tokenizer
from tests.tolerances import EMBEDS_REL


def pairs(text: str) -> list[tuple[str, float]]:
    (part,) = parse_compel(text).parts
    (prompt,) = part.prompts
    return [(segment.text, round(segment.weight, 9)) for segment in prompt]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  cat", [("a cat", 1)]),
        ("a (cat)1.3 b", [("a", 1), ("cat", 1.3), ("b", 1)]),
        ("a cat++ b--", [("a", 1), ("cat", 1.21), ("b", 0.81)]),
        ("(a (b)2 c)3", [("a", 3), ("b", 6), ("c", 3)]),
        ('"big cat"0.5', [("big cat", 0.5)]),
        ("(a cat) here", [("a cat here", 1)]),
        ("(a) 1.3", [("a 1.3", 1)]),  # a space: no weight
        ("cat.attend(1.2)", [("cat", 1.2)]),
        (r"\(cat\) x", [("(cat) x", 1)]),
        ("(cat", [("(cat", 1)]),
        ("C++ x", [("C", 1.21), ("x", 1)]),
        ("well-known", [("well-known", 1)]),
        ("(a)-1", [("a", 0.9), ("1", 1)]),
        ("a.swap(b)", [("a", 1)]),
        ("(a)1e9", [("a e9", 1)]),  # the weight is 1
        ("(a)99999", [("a", MAX_WEIGHT)]),
        ("", [("", 1)]),
        (" \n", [("", 1)]),
        ("()", [("", 1)]),
        ("withLora(x)", [("", 1)]),
    ],
)
def test_weights_by_hand(text: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(text) == expected


def test_conjunction_and_blend_by_hand() -> None:
    first, second = parse_compel('("a cat", "(b)1.5").and(1, 0.4)').parts
    assert [first.weight, second.weight] == [1.0, 0.4]
    (blend,) = parse_compel('("a cat", "dog").blend(1, 3)').parts
    assert blend.shares == (0.25, 0.75) and len(blend.prompts) == 2
    (blend,) = parse_compel('("a cat", "dog").blend(1, 3, no_normalize)').parts
    assert blend.shares == (1.0, 3.0)
    assert parse_compel("a withLora(x, 0.5) b.swap(c)").ignored == ("withLora(x, 0.5)", ".swap()")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('("a", "b").and(1)', r"\.and\(\) needs a number for each of 2 prompts, got '1'"),
        ('("a", "b").blend(x, y)', r"\.blend\(\) needs a number for each of 2"),
        ('("a", "b").blend(1, -1)', "add up to 0"),
        ('("a", "b").blend(1, 1) c', r"text after \.blend\(\)"),
        ('("a.swap(b)", "b").blend(1, 1)', r"\.swap\(\) cannot be part of \.blend\(\)"),
    ],
)
def test_operators_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        parse_compel(text)


def test_downweighting_by_hand() -> None:
    """At weight 0.5 the masked prompt has tan(pi / 4) = 1 share, as much as the base."""
    masks = []

    def run(input_ids: np.ndarray, mask: np.ndarray | None) -> TextEmbeds:
        if mask is not None:
            masks.append(mask)
        masked = 0 if mask is None else 10 * (1 - mask)[..., None].astype(np.float32)
        return TextEmbeds(text_encoder(input_ids) + masked)

    found = encode_compel(tokenizer(), ["a (red)0.5 circle"], lambda i: run).embeds[0]
    (mask,) = masks
    assert np.flatnonzero(mask[0] == 0).tolist() == [2]
    base, empty = (text_encoder(tokenizer()([text]))[0] for text in ("a red circle", ""))
    expected = base.copy()
    # weight 0.5 of the base and of the masked prompt, whose state at this token is 10 more
    expected[2] = empty[2] + 0.5 * (base[2] - empty[2]) + 0.5 * 0.5 * 10
    np.testing.assert_allclose(found, expected, rtol=EMBEDS_REL)
    assert math.tan(math.pi / 4) == pytest.approx(1, rel=EMBEDS_REL)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "(a " * 5_000 + "b)" * 5_000,
        '"' * 10_000,
        "a++" * 5_000,
        "\\" * 20_000 + "(",
        "a.swap(" * 3_000,
        '("a","b"' * 2_000,
        "(a)" + "9" * 5_000,
    ],
)
def test_long_prompts_are_parsed_fast(text: str) -> None:
    started = time.process_time()
    parse_compel(text)
    assert time.process_time() - started < 5


@given(text=ANY_PROMPT)
def test_any_text_is_parsed_or_rejected_in_one_line(text: str) -> None:
    try:
        parts = parse_compel(text).parts
    except InvalidArgumentError as error:
        assert "\n" not in str(error)
        return
    assert parts
    for part in parts:
        assert part.prompts and all(part.prompts)
        assert abs(part.weight) <= MAX_WEIGHT
        assert all(abs(s.weight) <= MAX_WEIGHT for prompt in part.prompts for s in prompt)
