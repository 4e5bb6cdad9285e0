"""Fixtures of the exporter's tests."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sdexport import exporter
from tests.helpers.changed_package import replace_notes


@pytest.fixture
def without_tracing(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    """Copies the graphs of the demo model's package instead of tracing, which is slow."""

    def copy(part: Any, module: Any, path: Path, *, notes: Mapping[str, str], **_: object) -> None:
        path.parent.mkdir(parents=True)
        for file in (package / part.name).glob("model.onnx*"):
            shutil.copyfile(file, path.with_name(file.name))
        replace_notes(path, notes)

    monkeypatch.setattr(exporter, "trace", copy)
