"""Files of reference outputs: their size and bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdexport.engines.array_files import read_arrays
from sdexport.engines.errors import PackageError
from sdexport.engines.guarded_files import REFERENCE_LIMIT
from sdexport.verification import reference

ARRAYS = {"a": np.zeros((100, 100), np.float32), "b": np.arange(5)}


def read(path: Path) -> dict[str, np.ndarray]:
    return dict(read_arrays(path, error=PackageError, limit=REFERENCE_LIMIT))


def test_reference_file_is_compressed_and_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        reference.write_arrays(tmp_path / f"{name}.npz", ARRAYS)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert (tmp_path / "one.npz").stat().st_size < 2_000
    assert all(
        np.array_equal(value, ARRAYS[key]) for key, value in read(tmp_path / "one.npz").items()
    )


def test_reference_file_can_be_read_however_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compressed arrays are only read up to a limit."""
    monkeypatch.setattr(reference, "MAX_UNPACKED", 1000)
    monkeypatch.setattr("sdexport.engines.array_files.MAX_UNPACKED", 1000)
    reference.write_arrays(tmp_path / "large.npz", ARRAYS)
    assert sorted(read(tmp_path / "large.npz")) == ["a", "b"]


def test_random_signs_are_of_both_kinds() -> None:
    signs = reference.random_signs([50, 60], torch.Generator().manual_seed(0))
    assert signs.dtype == torch.float32 and signs.shape == (50, 60)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
