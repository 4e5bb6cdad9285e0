"""Blends and schedules by hand, files that are not what they should be."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.runtime.text import embeds_file, prompt_embeds
from sdexport.runtime.text.embeds_file import load_embeds, save_embeds
from sdexport.runtime.text.prompt_embeds import EmbedSchedule, blend, crossfade
from tests.helpers.text import text_encoder, tokenizer


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
def test_blend_of_one_thing_with_itself_is_that_thing(share: float, numbers: list[float]) -> None:
    same = embeds(*numbers)
    for method in prompt_embeds.METHODS:
        mixed = blend([same, same], [1 - share, share], method=method)  # type: ignore[arg-type]
        np.testing.assert_allclose(mixed, same, rtol=1e-6)


def test_blend_slerp_by_hand() -> None:
    first, second = embeds(1, 0), embeds(0, 1)
    half = blend([first, second], [2, 2], method="slerp")
    np.testing.assert_allclose(half, embeds(math.sqrt(0.5), math.sqrt(0.5)), rtol=1e-6)
    third = blend([first, second], [2, 1], method="slerp")
    np.testing.assert_allclose(third, embeds(math.cos(math.pi / 6), 0.5), rtol=1e-6)
    zero = blend([first, embeds(0, 0)], [1, 3], method="slerp")
    np.testing.assert_allclose(zero, embeds(0.25, 0))
    opposite = blend([first, -first], [1, 3], method="slerp")
    np.testing.assert_allclose(opposite, embeds(-0.5, 0))


def test_blend_of_prompts() -> None:
    mixed = prompt_embeds.blend_prompts({"a red circle": 0.25, "a blue star": 0.75}, encode)
    first, second = encode(["a red circle"]), encode(["a blue star"])
    np.testing.assert_allclose(mixed, 0.25 * first + 0.75 * second, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(prompt_embeds.blend_prompts({"a": 1}, encode), encode(["a"]))


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
def test_blend_refuses(parts: Any, weights: Any, method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blend(parts, weights, method=method)


def test_blend_of_no_prompts() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        prompt_embeds.blend_prompts({}, encode)


def test_schedule_of_listed_weights_keeps_the_last() -> None:
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


def test_schedule_refuses() -> None:
    parts = [embeds(0), embeds(1)]
    with pytest.raises(ValueError, match=r"expected a step of 0\.\.4, got 5"):
        EmbedSchedule(parts, crossfade()).embeds_at(5, 5)
    with pytest.raises(ValueError, match="the weights of one step at least"):
        EmbedSchedule(parts, [])
    with pytest.raises(ValueError, match="weight for each of 2"):
        EmbedSchedule(parts, [(1, 0), (1,)])
    with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
        crossfade(0.5, 0.4)


def test_mix_tokens_changes_the_masked_ones() -> None:
    hidden = encode(["a red circle", "a blue circle"])
    mask = np.arange(77)[None] // 2 == 1
    mixed = prompt_embeds.mix_tokens(hidden[:1], hidden[1:], mask, share=0.25)
    np.testing.assert_array_equal(mixed[~mask], hidden[:1][~mask])
    np.testing.assert_allclose(mixed[mask], (0.75 * hidden[:1] + 0.25 * hidden[1:])[mask], 1e-5)
    np.testing.assert_array_equal(
        prompt_embeds.mix_tokens(hidden[:1], hidden[1:], mask)[mask], hidden[1:][mask]
    )


def test_mix_tokens_refuses() -> None:
    hidden = encode(["a red circle"])
    with pytest.raises(ValueError, match=r"expected a mask bool \(1, 77\)"):
        prompt_embeds.mix_tokens(hidden, hidden, np.ones((77,), dtype=bool))
    with pytest.raises(ValueError, match="finite share"):
        mask = np.ones((1, 77), dtype=bool)
        prompt_embeds.mix_tokens(hidden, hidden, mask, share=math.inf)


def test_embeds_in_and_out(tmp_path: Path) -> None:
    path = tmp_path / "embeds.npz"
    hidden, pooled = encode(["a red circle", ""]), np.ones((1, 5), dtype=np.float32)
    save_embeds(path, hidden[:1], hidden[1:], prompt="a red circle", seeds=[1, 2])
    loaded = load_embeds(path)
    np.testing.assert_array_equal(loaded.prompt_embeds, hidden[:1])
    np.testing.assert_array_equal(loaded.negative_prompt_embeds, hidden[1:])
    assert loaded.meta == {"prompt": "a red circle", "seeds": [1, 2]}
    save_embeds(path, hidden[:1], pooled_prompt_embeds=pooled)
    loaded = load_embeds(str(path))
    assert loaded.negative_prompt_embeds is None and loaded.meta == {}
    np.testing.assert_array_equal(loaded.pooled_prompt_embeds, pooled)
    assert [file.name for file in tmp_path.iterdir()] == ["embeds.npz"]


def test_embeds_are_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        save_embeds(tmp_path / name, embeds(1, 2), note="x")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"prompt_embeds": np.ones((1, 2, 3))}, "expected float32 of 3 dimensions, got float64"),
        ({"prompt_embeds": np.ones((1, 2), np.float32)}, "of 3 dimensions, got float32"),
        ({"prompt_embeds": embeds(1, math.nan)}, "expected finite numbers"),
        ({"prompt_embeds": np.ones((0, 2, 3), np.float32)}, "or none"),
        ({"prompt_embeds": None}, "prompt_embeds: expected float32 .* got NoneType"),
        (
            {"prompt_embeds": embeds(1), "negative_prompt_embeds": embeds(1, 2)},
            "negative_prompt_embeds: expected a shape that fits",
        ),
        (
            {"prompt_embeds": embeds(1), "pooled_prompt_embeds": np.ones((2, 2), np.float32)},
            "pooled_prompt_embeds: expected a shape that fits",
        ),
        ({"prompt_embeds": embeds(1), "note": object()}, "nothing that JSON can hold"),
        ({"prompt_embeds": embeds(1), "note": math.nan}, "nothing that JSON can hold"),
    ],
)
def test_save_refuses(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_embeds(tmp_path / "embeds.npz", **arrays)
    with pytest.raises(ValueError, match=r"ending in \.npz"):
        save_embeds(tmp_path / "embeds.npy", embeds(1))
    assert not list(tmp_path.iterdir())


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name + ".npy", content)
    return buffer.getvalue()


GOOD = npz(prompt_embeds=np.ones((1, 77, 8), np.float32), meta=np.array("{}"))
ONE = np.ones((1, 1, 1), np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip file"),
        (b"\x80\x04nonsense", "not a zip file"),
        (GOOD[: len(GOOD) // 2], "not a zip file"),
        (GOOD[:200] + b"\0" * 40 + GOOD[240:], "CRC"),
        (npz(other=ONE), "it has no prompt_embeds"),
        (npz(prompt_embeds=np.ones((1, 1, 1))), "expected float32"),
        (npz(prompt_embeds=ONE * np.nan), "finite"),
        (npz(prompt_embeds=np.array([[[{}]]], dtype=object)), "Object arrays cannot be loaded"),
        (npz(prompt_embeds=ONE, meta=np.array("[]")), "notes are no JSON object"),
        (npz(prompt_embeds=ONE, meta=np.array("{")), "Expecting property name"),
        (zipped(prompt_embeds=b"\x93NUMPY\x01\x00"), "EOF|magic|header"),
        (zipped(prompt_embeds=b"no array at all"), "prompt_embeds: expected float32|magic"),
    ],
)
def test_load_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "embeds.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_embeds(path)
    assert "embeds.npz: no file of embeddings" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_refuses_what_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "embeds.npz"
    np.savez_compressed(path, prompt_embeds=np.zeros((1, 77, 80), np.float32))
    assert path.stat().st_size < 2000
    monkeypatch.setattr(embeds_file, "MAX_FILE_BYTES", 2000)
    with pytest.raises(ValueError, match="bytes are more than 2000"):
        load_embeds(path)
    header = json.dumps({"descr": "<f4", "fortran_order": False, "shape": [1, 77, 10**12]})
    text = header.replace('"', "'").replace("false", "False").replace("[", "(").replace("]", ")")
    text = text.ljust(117) + "\n"
    path.write_bytes(
        zipped(prompt_embeds=b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    )
    with pytest.raises(ValueError, match=r"prompt_embeds.npy is cut off"):
        load_embeds(path)


@given(where=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_load_of_a_damaged_file_gives_a_value_error_or_embeddings(
    where: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(GOOD[:where] + bytes([value]) + GOOD[where + 1 :])
    try:
        assert load_embeds(path).prompt_embeds.shape == (1, 77, 8)
    except ValueError as error:
        assert "no file of embeddings" in str(error)


def test_load_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_embeds(tmp_path / "none.npz")
