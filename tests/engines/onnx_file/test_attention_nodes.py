"""Attention nodes as matrix products and softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from sdexport.engines import EngineError, open_session
from sdexport.engines.onnx_file.attention_nodes import spelled_out
from tests.helpers.small_attention import attention_feeds, write_attention
from tests.tolerances import COMPONENT_REL, assert_close


@pytest.mark.parametrize("settings", [{}, {"scale": 0.2}, {"softmax_precision": 1}])
@pytest.mark.parametrize("from_bytes", [False, True])
def test_spelled_out_computes_the_same(
    tmp_path: Path, settings: dict[str, Any], from_bytes: bool
) -> None:
    path = write_attention(tmp_path / "unet" / "model.onnx", **settings)
    content = spelled_out(path.read_bytes() if from_bytes else path, "unet")
    assert content is not None
    onnx.checker.check_model(content, full_check=True)
    changed = tmp_path / "changed" / "model.onnx"
    changed.parent.mkdir()
    changed.write_bytes(content)
    assert "Attention" not in {node.op_type for node in onnx.load(changed).graph.node}
    with open_session(path) as session, open_session(changed) as spelled:
        expected = session.run(attention_feeds())["y"]
        assert_close(spelled.run(attention_feeds())["y"], expected, rel=COMPONENT_REL)
    assert spelled_out(content, "unet") is None


@pytest.mark.parametrize(
    "settings", [{"mask": "mask"}, {"is_causal": 1}, {"softcap": 2.0}, {"q_num_heads": 2}]
)
def test_other_attention_stays(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = write_attention(tmp_path / "unet" / "model.onnx", **settings)
    assert spelled_out(path, "unet") is None


def test_damaged_model_is_an_engine_error(tmp_path: Path) -> None:
    path = write_attention(tmp_path / "unet" / "model.onnx")
    content = path.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(EngineError, match="unet"):
            spelled_out(path, "unet")
    with pytest.raises(FileNotFoundError):
        spelled_out(tmp_path / "missing.onnx", "unet")
