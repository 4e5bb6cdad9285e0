"""Files of prompt embeddings: written, read, and rejected if damaged."""

from __future__ import annotations

import io
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdexport import InvalidArgumentError
from sdexport.runtime.text import embeds_file
from sdexport.runtime.text.embeds_file import load_embeds, save_embeds


def embeds(*numbers: float) -> np.ndarray:
    """(1, 1, n) float32."""
    return np.array([[numbers]], dtype=np.float32)


def test_load_returns_what_save_wrote(tmp_path: Path) -> None:
    path = tmp_path / "embeds.npz"
    hidden = np.random.default_rng(0).standard_normal((2, 77, 3)).astype(np.float32)
    pooled = np.ones((1, 5), dtype=np.float32)
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


def test_save_writes_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        save_embeds(tmp_path / name, embeds(1, 2), note="x")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"prompt_embeds": np.ones((1, 2, 3))},
            "expected a float32 array of 3 dimensions, got an array float64",
        ),
        ({"prompt_embeds": np.ones((1, 2), np.float32)}, "of 3 dimensions, got an array float32"),
        ({"prompt_embeds": embeds(1, math.nan)}, "expected finite numbers"),
        ({"prompt_embeds": np.ones((0, 2, 3), np.float32)}, "or no values"),
        ({"prompt_embeds": None}, "prompt_embeds: expected a float32 array .* got None"),
        (
            {"prompt_embeds": embeds(1), "negative_prompt_embeds": embeds(1, 2)},
            "negative_prompt_embeds: expected a shape that fits",
        ),
        (
            {"prompt_embeds": embeds(1), "pooled_prompt_embeds": np.ones((2, 2), np.float32)},
            "pooled_prompt_embeds: expected a shape that fits",
        ),
        ({"prompt_embeds": embeds(1), "note": object()}, "JSON cannot represent the notes"),
        ({"prompt_embeds": embeds(1), "note": math.nan}, "JSON cannot represent the notes"),
    ],
)
def test_save_rejects_other_arguments(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_embeds(tmp_path / "embeds.npz", **arrays)
    with pytest.raises(ValueError, match=r"ends in \.npz"):
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
DAMAGED = r"\.npz (is damaged|holds no valid prompt embeddings): "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a ZIP archive"),
        (b"\x80\x04nonsense", "not a ZIP archive"),
        (GOOD[: len(GOOD) // 2], "not a ZIP archive"),
        (GOOD[:200] + b"\0" * 40 + GOOD[240:], "checksum"),
        (npz(other=ONE), "there are no prompt_embeds"),
        (npz(prompt_embeds=np.ones((1, 1, 1))), "expected a float32"),
        (npz(prompt_embeds=ONE * np.nan), "finite"),
        (npz(prompt_embeds=np.array([[[{}]]], dtype=object)), "not an array of numbers"),
        (npz(prompt_embeds=ONE, meta=np.array("[]")), "the notes are not a JSON object"),
        (npz(prompt_embeds=ONE, meta=np.array("{")), "Expecting property name"),
        (zipped(prompt_embeds=b"\x93NUMPY\x01\x00"), "format"),
        (zipped(prompt_embeds=b"no array at all"), "format"),
    ],
)
def test_load_rejects_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "embeds.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_embeds(path)
    assert re.search(DAMAGED, str(caught.value))
    assert "\n" not in str(caught.value)


def test_load_rejects_files_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "embeds.npz"
    path.write_bytes(GOOD)
    monkeypatch.setattr(embeds_file, "ARRAYS_LIMIT", 2000)
    with pytest.raises(ValueError, match="bytes; at most 2,000 are read"):
        load_embeds(path)


@example(where=len(GOOD) - 4, value=200)  # an offset before the file's first byte
@example(where=2899, value=0)  # another name in the list of members
@given(where=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_load_of_a_damaged_file_raises_or_returns_embeddings(
    where: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(GOOD[:where] + bytes([value]) + GOOD[where + 1 :])
    try:
        assert load_embeds(path).prompt_embeds.shape == (1, 77, 8)
    except InvalidArgumentError as error:
        assert re.search(DAMAGED, str(error))


def test_load_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_embeds(tmp_path / "none.npz")
