"""The ONNX reader finds every external file, and rejects every kind of garbage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sdexport.engines.onnx_file.graph_survey import survey


def outside(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_model(path: Path) -> None:
    """External tensors as an initializer, in a node's attribute and in a subgraph."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "inner",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        initializer=[outside("w", "in_subgraph.bin")],
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value=outside("c", "../in_attribute.bin")),
        helper.make_node("If", ["cond"], ["z"], then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(nodes, "g", [], [], initializer=[outside("a", "in_graph.bin")])
    path.write_bytes(helper.make_model(graph).SerializeToString())


def test_external_data_is_found_in_all_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_model(path)
    assert survey(path).locations == {
        "in_graph.bin",
        "../in_attribute.bin",
        "in_subgraph.bin",
    }


def test_external_data_none_in_the_package(package: Path) -> None:
    assert survey(package / "unet" / "model.onnx").locations == set()
    assert onnx.load(package / "unet" / "model.onnx", load_external_data=False).graph.node


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 3000), garbage=st.binary(max_size=40))
def test_external_data_garbage_is_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("g") / "model.onnx"
    write_model(path)
    data = path.read_bytes()
    path.write_bytes(data[: cut % len(data)] + garbage)
    try:
        locations = survey(path).locations
    except ValueError as error:
        assert "model.onnx" in str(error)
    else:
        assert isinstance(locations, set)


@pytest.mark.parametrize("content", [b"", b"<html><body>not found</body></html>", b"\x00" * 64])
def test_external_data_rejects_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.onnx"):
        survey(path)
