"""A graph of any precision, computed in float32 from its weights as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.float32_graph import STORED, in_float32
from sdexport.engines.ort.float32_session import open_float32
from tests.tolerances import FLOAT32_PRODUCT_REL, assert_close

TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as a type stores them, in float32."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    return (rounded & 0xFFFF0000).view(np.float32)


def tensor(values: np.ndarray, dtype: str, name: str) -> TensorProto:
    exact = stored(values, dtype)
    if dtype == "float16":
        raw = exact.astype(np.float16).tobytes()
    else:
        raw = (exact.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return helper.make_tensor(name, TYPES[dtype], values.shape, raw, raw=True)


def write_chain(path: Path, dtype: str, *, external: bool) -> np.ndarray:
    """y = x w + c with everything but the edges in a lower precision; returns w and c's sum."""
    rng = np.random.default_rng(3)
    weight, constant = rng.standard_normal((8, 5)), rng.standard_normal((1, 5))
    lower = TYPES[dtype]
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=lower),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Constant", [], ["c"], value=tensor(constant, dtype, "c")),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = tensor(weight, dtype, "w")
    if external:
        (path.parent / "model.onnx_data").write_bytes(b"\0" * 64 + weights.raw_data)
        length = str(len(weights.raw_data))
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        entries = (("location", "model.onnx_data"), ("offset", "64"), ("length", length))
        for key, value in entries:
            weights.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, lower, None) for name in "abcd"]
    edges = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, n])
        for name, n in (("x", 8), ("y", 5))
    ]
    graph = helper.make_graph(nodes, "g", edges[:1], edges[1:], [weights], value_info=values)
    opsets = [helper.make_opsetid("", 23)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )
    return np.concatenate([stored(weight, dtype), stored(constant, dtype)])


@pytest.mark.parametrize("dtype", TYPES)
def test_weight_that_is_an_input_with_a_default_value(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    rows = write_chain(path, dtype, external=True)
    model = onnx.load(path, load_external_data=False)
    model.graph.input.append(helper.make_tensor_value_info("w", TYPES[dtype], [8, 5]))
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(4).standard_normal((2, 8)).astype(np.float32)
    with open_float32(path) as session:
        assert_close(session.run({"x": x})["y"], x @ rows[:8] + rows[8:], rel=FLOAT32_PRODUCT_REL)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
@pytest.mark.parametrize("dtype", TYPES)
def test_float32_graph_rounds_nothing_but_the_weights(
    dtype: str, external: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    rows = write_chain(path, dtype, external=external)
    x = np.random.default_rng(4).standard_normal((2, 8)).astype(np.float32)
    with open_float32(path) as session:
        found = session.run({"x": x})["y"]
    assert_close(found, x @ rows[:8] + rows[8:], rel=FLOAT32_PRODUCT_REL)
    model = onnx.load_from_string(in_float32(path))
    assert [t.name for t in model.graph.initializer] == [f"w{STORED}"]
    assert not model.graph.value_info
    added = [node.op_type for node in model.graph.node if node.output[0].startswith("w")]
    assert added == ["Constant", "Shape", "Concat", "Reshape", "Cast"]
    (shape,) = [node for node in model.graph.node if node.op_type == "Shape"]
    assert shape.input == ["a"], "the weight is converted before the other factor is there"


def test_weights_that_are_kept_are_inputs_with_a_default_value(tmp_path: Path) -> None:
    """Which an engine does not convert when it optimises the graph."""
    path = tmp_path / "model.onnx"
    write_chain(path, "float16", external=True)
    places = {"w": ("elsewhere", 8, 80)}
    model = onnx.load_from_string(in_float32(path, widened=places, kept={"w"}))
    (weight,) = model.graph.initializer
    assert (weight.name, weight.data_type) == (f"w{STORED}", TensorProto.FLOAT16)
    assert [entry.value for entry in weight.external_data] == ["elsewhere", "8", "80"]
    (value,) = (each for each in model.graph.input if each.name == weight.name)
    kind = value.type.tensor_type
    assert kind.elem_type == TensorProto.FLOAT16
    assert [dim.dim_value for dim in kind.shape.dim] == [8, 5]
    nodes = [node.op_type for node in model.graph.node]
    added = ["Shape", "Constant", "Div", "Constant", "Add", "Reshape", "Cast"]
    assert nodes[1 : 1 + len(added)] == added
    assert model.graph.node[1].input == ["a"]
    write_chain(path, "float16", external=False)
    inside = in_float32(path, widened={}, kept={"w"})
    onnx.checker.check_model(onnx.load_from_string(inside), full_check=True)


def test_float32_graph_of_float32_is_the_graph_itself(package: Path) -> None:
    path = package / "unet" / "model.onnx"
    rewritten = onnx.load_from_string(in_float32(path))
    original = onnx.load(path)
    del original.graph.value_info[:]
    assert rewritten == original


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 700), garbage=st.binary(max_size=30))
def test_float32_graph_of_garbage_is_an_engine_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("garbage") / "model.onnx"
    write_chain(path, "float16", external=False)
    path.write_bytes(path.read_bytes()[:cut] + garbage)
    try:
        in_float32(path)
    except EngineError as error:
        assert "model.onnx" in str(error) and "\n" not in str(error)


def test_float32_session_of_a_graph_that_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "unet" / "model.onnx"
    path.parent.mkdir()
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"])], "g", [], [])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(EngineError, match=r"unet: ONNX Runtime cannot load model.onnx in float32"):
        open_float32(path)
    with pytest.raises(FileNotFoundError):
        open_float32(tmp_path / "missing.onnx")
