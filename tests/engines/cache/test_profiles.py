"""Sizes of engines: reading, checking, and picking a profile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.engines import TensorSpec
from sdexport.engines.cache.profiles import Span, check_profiles, input_shapes, narrowest

SAMPLE = TensorSpec("sample", "float32", ("batch", 4, "height", "width"))


def profile(batch: str, side: str) -> dict[str, Span]:
    return {"batch": Span.parse(batch), "height": Span.parse(side), "width": Span.parse(side)}


def test_span_reads_three_numbers_or_one() -> None:
    assert Span.parse("1:2:8") == Span(1, 2, 8)
    assert Span.parse("64") == Span(64, 64, 64)
    assert 8 in Span(1, 2, 8) and 9 not in Span(1, 2, 8)


@pytest.mark.parametrize(
    "text", ["", "1:2", "2:1:3", "0:1:2", "1:2:3:4", "-1", "a:b:c", "1.5", "9" * 30, "1:2:9999999"]
)
def test_span_rejects(text: str) -> None:
    with pytest.raises(ValueError, match="is not a span"):
        Span.parse(text)


@given(st.text(max_size=20))
def test_span_survives_any_text(text: str) -> None:
    try:
        span = Span.parse(text)
    except ValueError:
        return
    assert Span.parse(str(span)) == span


def test_span_divided_names_the_size_that_is_no_multiple() -> None:
    assert Span(256, 512, 1024).divided(8, "height") == Span(32, 64, 128)
    with pytest.raises(ValueError, match="height 256:500:1024: 500 is not a multiple of 8"):
        Span(256, 500, 1024).divided(8, "height")


def test_input_shapes_fill_in_the_spans() -> None:
    assert input_shapes(SAMPLE, profile("1:2:8", "8:16:32")) == (
        (1, 4, 8, 8),
        (2, 4, 16, 16),
        (8, 4, 32, 32),
    )


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([], "unet: no profile; give sizes for batch, height, width"),
        ([{"batch": Span(1, 1, 1)}], "unet: no sizes for height"),
        ([profile("1", "8") | {"depth": Span(1, 1, 1)}], "unet: there is no depth"),
    ],
)
def test_check_profiles_rejects(profiles: list[dict[str, Span]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_profiles("unet", [SAMPLE], profiles)


def test_check_profiles_rejects_dimensions_without_name() -> None:
    spec = TensorSpec("x", "float32", ("?", 4))
    with pytest.raises(ValueError, match="dimensions without a name"):
        check_profiles("unet", [spec], [{"?": Span(1, 1, 1)}])


def test_narrowest_profile_that_fits() -> None:
    profiles = [profile("1:2:8", "8:16:32"), profile("2", "16"), profile("1:2:2", "16")]
    assert narrowest("unet", profiles, {"batch": 2, "height": 16, "width": 16}) == 1
    assert narrowest("unet", profiles, {"batch": 1, "height": 16, "width": 16}) == 2
    assert narrowest("unet", profiles, {"batch": 8, "height": 32, "width": 9}) == 0


def test_narrowest_lists_the_profiles() -> None:
    with pytest.raises(ValueError, match=r"not built for batch 9, height 16, width 16; .* 1:2:8"):
        narrowest("unet", [profile("1:2:8", "16")], {"batch": 9, "height": 16, "width": 16})
