"""Blends of prompt embeddings and schedules, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.runtime.text.blending import (
    METHODS,
    EmbedSchedule,
    blend,
    blend_prompts,
    crossfade,
    mix_tokens,
)
from tests.helpers.text import text_encoder, tokenizer
from tests.tolerances import BLENDED_EMBEDS_REL, EMBEDS_ABS, EMBEDS_REL


def embeds(*numbers: float) -> np.ndarray:
    """(1, 1, n) float32."""
    return np.array([[numbers]], dtype=np.float32)


def encode(prompts: list[str]) -> np.ndarray:
    return text_encoder(tokenizer()(prompts))


def test_blend_linear_by_hand() -> None:
    first, second = embeds(1, 2), embeds(3, -2)
    np.testing.assert_array_equal(blend([first, second], [0.5, 0.5]), embeds(2, 0))
    np.testing.assert_array_equal(blend([first, second, first], [1, 0.5, -1]), embeds(1.5, -1))
    np.testing.assert_array_equal(blend([first], [1]), first)


@given(st.floats(0, 1), st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4))
def test_blend_of_equal_arrays_is_that_array(share: float, numbers: list[float]) -> None:
    same = embeds(*numbers)
    for method in METHODS:
        mixed = blend([same, same], [1 - share, share], method=method)  # type: ignore[arg-type]
        np.testing.assert_allclose(mixed, same, rtol=BLENDED_EMBEDS_REL)


def test_blend_slerp_by_hand() -> None:
    first, second = embeds(1, 0), embeds(0, 1)
    half = blend([first, second], [2, 2], method="slerp")
    np.testing.assert_allclose(
        half, embeds(math.sqrt(0.5), math.sqrt(0.5)), rtol=BLENDED_EMBEDS_REL
    )
    third = blend([first, second], [2, 1], method="slerp")
    np.testing.assert_allclose(third, embeds(math.cos(math.pi / 6), 0.5), rtol=BLENDED_EMBEDS_REL)
    zero = blend([first, embeds(0, 0)], [1, 3], method="slerp")
    np.testing.assert_array_equal(zero, embeds(0.25, 0))
    opposite = blend([first, -first], [1, 3], method="slerp")
    np.testing.assert_array_equal(opposite, embeds(-0.5, 0))


def test_blend_prompts() -> None:
    mixed = blend_prompts({"a red circle": 0.25, "a blue star": 0.75}, encode)
    first, second = encode(["a red circle"]), encode(["a blue star"])
    np.testing.assert_allclose(
        mixed, 0.25 * first + 0.75 * second, rtol=EMBEDS_REL, atol=EMBEDS_ABS
    )
    np.testing.assert_array_equal(blend_prompts({"a": 1}, encode), encode(["a"]))


@pytest.mark.parametrize(
    ("parts", "weights", "method", "message"),
    [
        ([], [], "linear", "got none"),
        ([embeds(1), embeds(1, 2)], [1, 1], "linear", "of one shape, got float32"),
        ([np.zeros((1, 1, 1))], [1], "linear", "expected float32 embeddings"),
        ([embeds(1)], [1, 2], "linear", "weight for each of 1 embeddings"),
        ([embeds(1)], [math.nan], "linear", "a finite weight"),
        ([embeds(1)], [1], "cubic", "choose one of linear, slerp"),
        ([embeds(1)], [1], "slerp", "slerp takes two"),
        ([embeds(1), embeds(2)], [0, 0], "slerp", "not both 0"),
        ([embeds(1), embeds(2)], [-1, 2], "slerp", "of 0 or more"),
    ],
)
def test_blend_rejects_other_arguments(parts: Any, weights: Any, method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blend(parts, weights, method=method)


def test_blend_prompts_rejects_no_prompts() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        blend_prompts({}, encode)


def test_schedule_repeats_the_last_weights() -> None:
    schedule = EmbedSchedule([embeds(2), embeds(4)], [(1, 0), (0.5, 0.5)])
    values = [float(schedule.embeds_at(i, 5)[0, 0, 0]) for i in range(5)]
    assert values == [2, 3, 3, 3, 3]
    assert schedule.embeds_at(3, 5) is schedule.embeds_at(4, 5)
    with pytest.raises(ValueError, match="read-only"):
        schedule.embeds_at(4, 5)[:] = 0


@pytest.mark.parametrize(
    ("start", "end", "shares"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.25, 0.75, [0, 0, 0.5, 1, 1]),
        (0.5, 0.5, [0, 0, 1, 1, 1]),
        (1, 1, [0, 0, 0, 0, 1]),
        (0, 0, [1, 1, 1, 1, 1]),
    ],
)
def test_crossfade_by_hand(start: float, end: float, shares: list[float]) -> None:
    schedule = EmbedSchedule([embeds(0), embeds(1)], crossfade(start, end))
    assert [float(schedule.embeds_at(i, 5)[0, 0, 0]) for i in range(5)] == shares
    assert schedule.embeds_at(0, 1).shape == (1, 1, 1)


def test_schedule_rejects_other_arguments() -> None:
    parts = [embeds(0), embeds(1)]
    with pytest.raises(ValueError, match="expected a step from 0 to 4, got 5"):
        EmbedSchedule(parts, crossfade()).embeds_at(5, 5)
    with pytest.raises(ValueError, match="the weights of at least one step"):
        EmbedSchedule(parts, [])
    with pytest.raises(ValueError, match="weight for each of 2"):
        EmbedSchedule(parts, [(1, 0), (1,)])
    with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
        crossfade(0.5, 0.4)


def test_mix_tokens_changes_masked_tokens_only() -> None:
    hidden = encode(["a red circle", "a blue circle"])
    mask = np.arange(77)[None] // 2 == 1
    mixed = mix_tokens(hidden[:1], hidden[1:], mask, share=0.25)
    np.testing.assert_array_equal(mixed[~mask], hidden[:1][~mask])
    np.testing.assert_allclose(
        mixed[mask], (0.75 * hidden[:1] + 0.25 * hidden[1:])[mask], rtol=EMBEDS_REL
    )
    np.testing.assert_array_equal(mix_tokens(hidden[:1], hidden[1:], mask)[mask], hidden[1:][mask])


def test_mix_tokens_rejects_other_arguments() -> None:
    hidden = encode(["a red circle"])
    with pytest.raises(ValueError, match=r"expected a mask bool \(1, 77\)"):
        mix_tokens(hidden, hidden, np.ones((77,), dtype=bool))
    with pytest.raises(ValueError, match="finite share"):
        mask = np.ones((1, 77), dtype=bool)
        mix_tokens(hidden, hidden, mask, share=math.inf)
