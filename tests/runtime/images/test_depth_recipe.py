"""The recipe of docs/control-images.md for networks, with a small graph in place of one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

PAGE = Path(__file__).parents[3] / "docs" / "control-images.md"


def write_estimator(path: Path) -> None:
    """A graph with the names of depth estimators, whose depth is the mean of the colors."""
    path.parent.mkdir()
    batch, size = "batch_size", ["height", "width"]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [batch, 3, *size])
    depth = helper.make_tensor_value_info("predicted_depth", TensorProto.FLOAT, [batch, *size])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceMean", ["pixel_values", "axes"], ["predicted_depth"], keepdims=0)
    graph = helper.make_graph([node], "depth", [pixels], [depth], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)


def test_recipe_for_depth_gives_a_control_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(
        r"<!-- not run: needs a depth estimator -->\n```python\n(.*?)```",
        PAGE.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    levels = np.zeros((60, 90, 3), np.uint8)
    levels[:, 45:] = 200  # near
    Image.fromarray(levels).save(tmp_path / "circle.png")
    write_estimator(tmp_path / "depth-anything" / "model.onnx")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    with Image.open("depth.png") as control:
        assert control.mode == "RGB" and control.size == (90, 60)
        found = np.asarray(control)
    assert found[:, :30].max() < 10 and found[:, 60:].min() > 230
