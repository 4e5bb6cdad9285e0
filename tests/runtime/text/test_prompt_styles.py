"""Names of prompt styles, and warnings about syntax that a style does not read (R6)."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given

from sdexport import InvalidArgumentError
from sdexport.runtime.text.prompt_styles import STYLES, style_name, unread_syntax
from tests.helpers.prompts import ANY_PROMPT


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "plain"),
        ("plain", "plain"),
        ("A1111", "automatic1111"),
        ("AUTOMATIC1111", "automatic1111"),
        ("Comfy_UI", "comfyui"),
        ("comfy", "comfyui"),
        (" compel", "compel"),
    ],
)
def test_names_and_aliases(name: str | None, expected: str) -> None:
    assert style_name(name) == expected


def test_weights_are_the_style_automatic1111() -> None:
    assert style_name(None, weights=True) == style_name("a1111", weights=True) == "automatic1111"
    with pytest.raises(InvalidArgumentError, match="prompt_weights is the style 'automatic1111'"):
        style_name("comfyui", weights=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("autmatic1111", "did you mean 'automatic1111'"),
        ("confyui", "did you mean 'comfyui'"),
        ("", "choose one of plain, automatic1111, comfyui, compel"),
        (5, "prompt_style must be a name, got 5"),
        (["plain"], "prompt_style must be a name"),
    ],
)
def test_unknown_names(name: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        style_name(name)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat AND a dog", {"AND": "automatic1111"}),
        ("a cat\nBREAK\na dog", {"BREAK": "automatic1111"}),
        ("[a|b] x", {"[a|b]": "automatic1111"}),
        ("[a:b:0.5] x", {"[a:b:0.5]": "automatic1111"}),
        ("[in fog:3]", {"[in fog:3]": "automatic1111"}),
        ("a (word:1.2)", {"(word:1.2)": "automatic1111"}),
        ("((best))", {"((best))": "automatic1111"}),
        ("<lora:x:1> a", {"<lora:x:1>": "automatic1111"}),
        ("a (cat)++", {")++": "compel"}),
        ("(cat)1.3", {")1.3": "compel"}),
        ('("a", "b").blend(1, 2)', {").blend(1, 2)": "compel"}),
    ],
)
def test_syntax_of_other_programs_is_found(text: str, found: dict[str, str]) -> None:
    assert unread_syntax(text, "plain") == found


@pytest.mark.parametrize(
    "text",
    [
        "a cat (on a mat), [sic]",
        "photo (16:9)",
        "a (ratio 16:9) photo at (12:30)",
        "C++ code",
        "BLACK AND WHITE photo",
        "ROCK AND ROLL",
        "a cat :) and a dog :(",
        "f(x) = (x+1)",
        "(cat)-like",
        r"\(word:1.2\)",
        "Dr. (2.5)",
        "a|b: c",
        "sandy BANDS, breakfast",
    ],
)
def test_ordinary_text_is_no_syntax(text: str) -> None:
    assert unread_syntax(text, "plain") == {}


def test_a_style_reads_its_own_syntax() -> None:
    text = "(a:1.2) ((b)) AND [c|d] [e:0.5] [[f]] <lora:x:1>"
    assert unread_syntax(text, "automatic1111") == {}
    assert unread_syntax("(a:1.2) ((b)) <lora:x:1>", "comfyui") == {}
    assert unread_syntax("(a)1.2 (b)++ ('a').and()", "compel") == {}
    assert set(unread_syntax(text, "comfyui")) == {"AND", "[c|d]", "[e:0.5]", "[[f]]"}


@pytest.mark.parametrize(
    "text",
    [
        *("(" * 20_000, "[a|" * 10_000, "((a" * 10_000, "AND" * 20_000, " AND" * 5_000),
        *("[:1" * 9_000, "(a:" + "1" * 60_000, "[a:" + "1" * 60_000, "[" + "|" * 60_000),
    ],
)
def test_long_texts_are_searched_fast(text: str) -> None:
    started = time.process_time()
    unread_syntax(text, "plain")
    assert time.process_time() - started < 2


@given(text=ANY_PROMPT)
def test_any_text_is_searched(text: str) -> None:
    for style in STYLES:
        unread_syntax(text, style)
