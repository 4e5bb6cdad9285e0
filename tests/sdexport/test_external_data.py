"""Large weights lie beside the graph, under the name that the package format gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines import open_session
from engines.onnx_file import external_data_locations
from sdexport import trace as trace_module
from sdexport.trace import trace
from tests.parity.test_component_parity import assert_equal_to_torch, part_named


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
    assert external_data_locations(path) == {"model.onnx_data"}
    with open_session(path) as session:
        assert_equal_to_torch(part, session, torch_sessions["text_encoder"])
