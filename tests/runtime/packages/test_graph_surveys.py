"""Each graph of a package is walked once, by whoever asks first."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package, PackageError
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.onnx_file.graph_walk import GraphWalk
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from tests.helpers.changed_package import as_optimum_folder

OPTIMUM = True


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often a graph of each size was walked."""
    found: Counter[int] = Counter()
    walk = GraphWalk.model

    def model(self: GraphWalk, data: Any, start: int, end: int) -> None:
        found[end - start] += 1
        walk(self, data, start, end)

    monkeypatch.setattr(GraphWalk, "model", model)
    return found


@pytest.mark.parametrize("optimum", [not OPTIMUM, OPTIMUM])
def test_loading_walks_each_graph_once(tmp_path: Path, walks: Counter[int], optimum: bool) -> None:
    folder = tmp_path / "package"
    shutil.copytree(PACKAGE_DIR, folder, copy_function=shutil.copyfile)  # written just now
    if optimum:
        as_optimum_folder(folder)
    package = Package.load(folder)
    for graph in package.graphs:
        package.model_files(graph)
        if not optimum:  # else its file is hashed, which reads it anyway
            package.model_digest(graph)
    sizes = Counter(package.model_path(graph).stat().st_size for graph in package.graphs)
    assert walks == sizes


def test_damaged_graph_is_a_package_error(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").write_bytes(b"\x3a\x80")
    with pytest.raises(PackageError, match=r"unet: model\.onnx"):
        GraphSurveys(tmp_path).of("unet")
    with pytest.raises(FileNotFoundError):
        GraphSurveys(tmp_path).of("vae_decoder")
