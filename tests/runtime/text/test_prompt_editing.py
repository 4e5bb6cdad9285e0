"""Prompt editing, alternation, AND and tags by hand (field case R6)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.runtime.text.prompt_editing import EditedPrompt
from sdexport.runtime.text.prompt_parts import split_parts, without_tags
from sdexport.runtime.text.prompt_weights import MAX_WEIGHT
from tests.helpers.prompts import ANY_PROMPT


def per_step(text: str, steps: int) -> list[str]:
    prompt = EditedPrompt(text)
    return [prompt.at(step, steps) for step in range(1, steps + 1)]


def changes(text: str, steps: int) -> list[tuple[int, str]]:
    """The last step of each text, and the text."""
    texts = per_step(text, steps)
    return [(i + 1, t) for i, t in enumerate(texts) if i + 1 == steps or t != texts[i + 1]]


def test_published_example_with_a_hundred_steps() -> None:
    """The schedule that the web UI's documentation gives."""
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]"
    )
    start = "fantasy landscape with a "
    assert changes(text, 100) == [
        (25, f"{start}mountain and an oak in foreground shoddy"),
        (50, f"{start}lake and an oak in foreground in background shoddy"),
        (60, f"{start}lake and an oak in foreground in background masterful"),
        (75, f"{start}lake and an oak in background masterful"),
        (100, f"{start}lake and a christmas tree in background masterful"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
        ("a [b::3] c", [(3, "a b c"), (10, "a  c")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("[a:[b|c]:8]", [(8, "a"), (9, "b"), (10, "c")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a:b:1.0]", [(10, "a")]),  # a fraction: all steps
        ("[a:b:1]", [(1, "a"), (10, "b")]),  # the first step
        ("[a:b:16] landscape", [(10, "a landscape")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-3]", [(10, "b")]),
        ("[a:b:2e0]", [(2, "a"), (10, "b")]),
        ("[a:b:0.29]", [(2, "a"), (10, "b")]),
        ("[a:b:1e999]", [(10, "a")]),
        ("[a:b:nan]", [(10, "[a:b:nan]")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("(a:[b:c:5]:1.2)", [(5, "(a:b:1.2)"), (10, "(a:c:1.2)")]),
        (r"\[a:b:3\] [c:d:3]", [(3, r"\[a:b:3\] c"), (10, r"\[a:b:3\] d")]),
        ("16:9 [a:b:3]", [(3, "16:9 a"), (10, "16:9 b")]),
        ("a | b [c:d:3]", [(10, "a | b [c:d:3]")]),  # as in the web UI, all of it is text
        ("[c:d:3] \\", [(10, "[c:d:3] \\")]),
        ("[::3]", [(10, "")]),
        ("[]", [(10, "[]")]),
        ("", [(10, "")]),
    ],
)
def test_editing_by_hand(text: str, expected: list[tuple[int, str]]) -> None:
    assert changes(text, 10) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a|(b:1.1)]", ["a", "(b:1.1)", "a", "(b:1.1)", "a", "(b:1.1)"]),
        ("[fe|]male", ["female", "male", "female", "male", "female", "male"]),
        ("[fe|||]male", ["female", "male", "male", "male", "female", "male"]),
        ("[|]x", ["x"] * 6),
        ("[cow|horse|[cat|dog]] [1|2]", ["cow 1", "horse 2", "cat 1", "cow 2", "horse 1", "dog 2"]),
        ("[a|[b:c:4]]", ["a", "b", "a", "b", "a", "c"]),
    ],
)
def test_alternation_by_hand(text: str, expected: list[str]) -> None:
    assert per_step(text, 6) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat AND a dog", [("a cat", 1.0), (" a dog", 1.0)]),
        (
            "a cat :1.2 AND a dog:.5  AND fox : -2. ",
            [("a cat", 1.2), (" a dog", 0.5), (" fox", -2)],
        ),
        ("a cat AND  AND x", [("a cat", 1.0), ("", 1.0), (" x", 1.0)]),
        ("BAND and SANDY aAND", [("BAND and SANDY aAND", 1.0)]),
        ("a (cat:1.2)", [("a (cat:1.2)", 1.0)]),
        ("ratio 16:9", [("ratio 16", 9.0)]),
        ("ratio 16:9,", [("ratio 16:9,", 1.0)]),
        ("x\n:2\n", [("x", 2.0)]),
        (f"x:{'9' * 400}", [("x", MAX_WEIGHT)]),
        (":0.7", [("", 0.7)]),
        ("x:1e3", [("x:1e3", 1.0)]),
        ("AND", [("", 1.0), ("", 1.0)]),
    ],
)
def test_parts_by_hand(text: str, expected: list[tuple[str, float]]) -> None:
    assert [(part.text.at(1, 1), part.weight) for part in split_parts(text)] == expected


@pytest.mark.parametrize(
    ("text", "rest", "tags"),
    [
        ("a <lora:x:0.8> b", "a  b", ["<lora:x:0.8>"]),
        ("<LoRA:x y><lyco:z:1:0.5>", "", ["<LoRA:x y>", "<lyco:z:1:0.5>"]),
        ("<hypernet:h>, b", ", b", ["<hypernet:h>"]),
        ("<cat-toy> <lora> <lora:> a<b:c>d", "<cat-toy> <lora> <lora:> a<b:c>d", []),
        ("<lora:a <lora:b:1>", "<lora:a ", ["<lora:b:1>"]),
    ],
)
def test_tags_by_hand(text: str, rest: str, tags: list[str]) -> None:
    assert without_tags(text) == (rest, tags)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10_000 + "a" + "]" * 10_000,
        "[a:" * 10_000 + "b" + ":2]" * 10_000,
        "[a|" * 5_000 + "b]" * 5_000,
        "(" * 10_000 + "[a|b]" + ")" * 10_000,
        "[|" * 10_000,
        "a AND " * 10_000,
        "x" + ":1" * 10_000,
        " " * 50_000 + ":",
        "<lora:" * 10_000,
    ],
)
def test_many_brackets_are_fast(text: str) -> None:
    started = time.process_time()
    for part in split_parts(without_tags(text)[0]):
        part.text.at(1, 4)
    assert time.process_time() - started < 5


@given(text=ANY_PROMPT, steps=st.integers(1, 12))
def test_any_text_has_a_text_in_each_step(text: str, steps: int) -> None:
    for part in split_parts(without_tags(text)[0]):
        assert abs(part.weight) <= MAX_WEIGHT
        texts = [part.text.at(step, steps) for step in range(1, steps + 1)]
        assert part.text.changes or len(set(texts)) == 1
        assert 1 <= part.text.last_change(steps) <= steps
