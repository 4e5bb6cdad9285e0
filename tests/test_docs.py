"""The page of experiments: its code runs, and makes the pictures that are shown."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tolerances import DOCS_IMAGE_MEAN

DOCS = Path(__file__).parent.parent / "docs"
MAX_BYTES = 1_500_000


@pytest.mark.slow
def test_experiments_page_is_what_its_code_gives(package: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(DOCS / "experiments.py"))
    page = (DOCS / "experiments.md").read_text(encoding="utf-8")
    again = script["run"](page, package, tmp_path)
    measured = re.compile(r"\d+\.\d+ s\b")
    assert measured.sub("", again) == measured.sub("", page)
    names = script["pictures"](page)
    assert len(names) == len(set(names)) > 20
    assert sorted(names) == sorted(f.name for f in (DOCS / "experiments").iterdir())
    assert sum(f.stat().st_size for f in (DOCS / "experiments").iterdir()) < MAX_BYTES
    for name in names:
        made = script["made"](tmp_path, name)
        with Image.open(DOCS / "experiments" / name) as kept, Image.open(made) as new:
            a, b = (np.asarray(image.convert("RGB"), int) for image in (kept, new))
        assert a.shape == b.shape, name
        assert np.abs(a - b).mean() <= DOCS_IMAGE_MEAN, name
