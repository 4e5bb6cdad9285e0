"""Large weights are in a data file next to the graph, under the name of the package format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from sdexport.engines import open_session
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.graphs import trace as trace_module
from sdexport.graphs.trace import trace
from tests.helpers.torch_components import assert_equal_to_torch, part_named


def test_large_weights_go_to_model_onnx_data(
    checkpoint: Path,
    modules: dict[str, Any],
    torch_sessions: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace_module, "EXTERNAL_DATA_FROM", 0)
    part = part_named("text_encoder", checkpoint)
    path = tmp_path / "text_encoder" / "model.onnx"
    trace(part, modules["text_encoder"], path, opset=23)
    assert sorted(f.name for f in path.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert survey(path).locations == {"model.onnx_data"}
    with open_session(path) as session:
        assert_equal_to_torch(part, session, torch_sessions["text_encoder"])


MAPPED = """
import sys
from sdexport.engines import open_session
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
open_session(sys.argv[1], threads=1, optimization="none", prepacking=False).close()
before = anonymous()
session = open_session(sys.argv[2], threads=1, optimization="none", prepacking=False)
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_large_weights_are_mapped_and_not_copied(package: Path, tmp_path: Path) -> None:
    """Opening a graph takes a fraction of its weights in memory of its own."""
    unet = tmp_path / "unet" / "model.onnx"
    unet.parent.mkdir()
    onnx.save(
        onnx.load(package / "unet" / "model.onnx"),
        unet,
        save_as_external_data=True,
        location="model.onnx_data",
    )
    weights = (unet.parent / "model.onnx_data").stat().st_size
    command = [sys.executable, "-c", MAPPED, package / "text_encoder" / "model.onnx", unet]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert int(done.stdout) < weights / 2, f"{int(done.stdout):,} bytes for {weights:,} of weights"
