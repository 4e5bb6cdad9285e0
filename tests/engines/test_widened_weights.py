"""Half-precision weights that are converted before ONNX Runtime gets them: the same results."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdexport import open_session
from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.float32_graph import STORED
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.ort import widened_weights
from sdexport.engines.ort.mapped_initializers import MappedInitializers
from sdexport.engines.ort.onnxruntime_session import OnnxRuntimeSession
from sdexport.engines.ort.prepared.prepared_graph import data_path
from sdexport.engines.ort.widened_weights import kept_halves, widens
from tests.tolerances import FLOAT32_PRODUCT_REL, assert_close

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is freed on Linux alone")
SIDE = 64


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened_weights, "SMALLEST", 1)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors of any size stay in float16."""
    monkeypatch.setattr(widened_weights, "SMALLEST_KEPT", 1)


def _graph(path: Path, *, edges: int = TensorProto.FLOAT, external: bool = True) -> Path:
    """A convolution, a product and a sum in float16; weights of any size are external."""
    random = np.random.default_rng(0)
    shapes = {"kernel": (SIDE, 4, 3, 3), "matrix": (SIDE, SIDE), "bias": (SIDE,)}
    weights = [
        numpy_helper.from_array((random.standard_normal(shape) / 8).astype(np.float16), name)
        for name, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.array([0, 2, 3, 1], np.int64), "unused"))
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["x16", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["t", "matrix"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=edges),
    ]
    ends = [
        helper.make_tensor_value_info("x", edges, ["b", 4, "h", "w"]),
        helper.make_tensor_value_info("y", edges, ["b", "h", "w", SIDE]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        path,
        save_as_external_data=external,
        location=f"{path.name}_data",
        size_threshold=100,
    )
    return path


def _output(path: Path) -> np.ndarray:
    pixels = np.random.default_rng(1).standard_normal((2, 4, 16, 16)).astype(np.float32)
    with open_session(path) as session:
        return session.run({"x": pixels})["y"]


def test_results_are_the_same_as_of_onnxruntimes_own_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _graph(tmp_path / "model.onnx")
    assert widens(path) is None  # it is small
    own = _output(path)
    monkeypatch.setattr(widened_weights, "SMALLEST", 1)
    assert widens(path) is not None
    assert (_output(path) == own).all()


def _with_defaults(path: Path, target: Path) -> Path:
    """The same graph; every weight is an input, too, as all are before ONNX's IR version 4."""
    model = onnx.load(path, load_external_data=False)
    for weight in model.graph.initializer:
        value = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        model.graph.input.append(value)
    onnx.save(model, target)
    return target


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("keeps", [False, True])
def test_weights_that_are_inputs_with_default_values(
    keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keeps:
        monkeypatch.setattr(widened_weights, "SMALLEST_KEPT", 1)
    path = _graph(tmp_path / "model.onnx")
    other = _with_defaults(path, tmp_path / "other.onnx")
    assert widens(other) is not None
    assert (_output(other) == _output(path)).all()


@pytest.mark.usefixtures("small")
def test_the_file_is_gone_once_the_session_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDEXPORT_CACHE", str(tmp_path / "cache"))
    path = _graph(tmp_path / "model.onnx")
    assert np.isfinite(_output(path)).all()
    folder = tmp_path / "cache" / widened_weights.SUBFOLDER
    assert folder.is_dir() and not [*folder.iterdir()]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("cache", ["a folder", "off"])
def test_a_full_disk_leaves_the_conversion_to_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    monkeypatch.setenv("SDEXPORT_CACHE", cache if cache == "off" else str(tmp_path / "cache"))
    path = _graph(tmp_path / "model.onnx")
    expected = _output(path)

    def full(file: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(widened_weights.os, "posix_fallocate", full)
    assert (_output(path) == expected).all()
    assert not [*tmp_path.glob("cache/*/.*")]


@pytest.mark.usefixtures("small")
def test_other_graphs_are_left_to_onnxruntime(tmp_path: Path) -> None:
    assert widens(_graph(tmp_path / "inside.onnx", external=False)) is None
    assert widens(_graph(tmp_path / "edges.onnx", edges=TensorProto.FLOAT16)) is None
    truncated = _graph(tmp_path / "truncated.onnx")
    data = tmp_path / "truncated.onnx_data"
    data.write_bytes(data.read_bytes()[:-100])
    assert widens(truncated) is None
    with pytest.raises(EngineError, match="cannot load"):
        open_session(truncated)


@pytest.mark.usefixtures("small")
def test_weights_that_are_linked_are_converted_too(tmp_path: Path) -> None:
    path = _graph(tmp_path / "model.onnx")
    expected = _output(path)
    (tmp_path / "model.onnx_data").rename(tmp_path / "blob")
    (tmp_path / "model.onnx_data").symlink_to("blob")
    assert widens(path) is not None
    assert (_output(path) == expected).all()


LAYERS, WIDTH = 16, 1024


def _chain(path: Path) -> Path:
    """Products in float16, one after the other; each is added to its input and scaled down."""
    random = np.random.default_rng(0)
    shape, half = (WIDTH, WIDTH), TensorProto.FLOAT16
    names = [f"w{i}" for i in range(LAYERS)]
    weights = [
        numpy_helper.from_array((random.standard_normal(shape) / WIDTH).astype(np.float16), name)
        for name in names
    ]
    nodes = [helper.make_node("Cast", ["x"], ["a0"], to=half)]
    for i, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", [f"a{i}", name], [f"m{i}"]))
        nodes.append(helper.make_node("Add", [f"a{i}", f"m{i}"], [f"s{i}"]))
        nodes.append(helper.make_node("Tanh", [f"s{i}"], [f"a{i + 1}"]))
    nodes.append(helper.make_node("Cast", [f"a{LAYERS}"], ["y"], to=TensorProto.FLOAT))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", WIDTH]) for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data")
    return path


@pytest.mark.usefixtures("small")
def test_factors_of_products_stay_half_and_are_converted_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each conversion waits for a shape that is computed from the other factor of the product."""
    path, stored = _chain(tmp_path / "model.onnx"), tmp_path / "stored.onnx"
    rows = np.random.default_rng(1).standard_normal((8, WIDTH)).astype(np.float32)
    outputs = []
    for smallest in (1, 2**40):
        monkeypatch.setattr(widened_weights, "SMALLEST_KEPT", smallest)
        with OnnxRuntimeSession(path) as session:
            assert session.mapped is None  # only where the graph runs seldom
            outputs.append(session.run({"x": rows})["y"])
    assert_close(outputs[0], outputs[1], rel=FLOAT32_PRODUCT_REL)
    monkeypatch.setattr(widened_weights, "SMALLEST_KEPT", 1)
    OnnxRuntimeSession(path, keep=stored).close()
    graph = onnx.load(stored, load_external_data=False).graph
    made_by = {name: node for node in graph.node for name in node.output}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.output[0] != "y"]
    halves = [made_by[node.input[0]] for node in casts]
    assert [node.op_type for node in halves] == ["Reshape"] * LAYERS
    assert all(node.input[1] in made_by for node in halves)


@pytest.mark.usefixtures("small", "kept")
def test_nothing_stays_half_where_all_would_be_converted_at_once(tmp_path: Path) -> None:
    path = _graph(tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    found = widens(path)
    assert found is not None and [each.name for each in kept_halves(found)] == ["matrix"]
    assert not kept_halves(replace(found, opset=14))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    path.write_bytes(model.SerializeToString())
    found = widens(path)
    assert found is not None and not kept_halves(found)


@pytest.mark.usefixtures("small", "kept")
def test_weights_that_stay_half_can_be_freed(tmp_path: Path) -> None:
    path = _chain(tmp_path / "model.onnx")
    rows = np.ones((2, WIDTH), np.float32)
    with OnnxRuntimeSession(path, seldom=True) as session:
        expected = session.run({"x": rows})["y"]
        assert session.mapped == 2 * LAYERS * WIDTH**2 and session.trim()
        assert (session.run({"x": rows})["y"] == expected).all()
    assert not session.trim()


@pytest.mark.usefixtures("small", "kept")
def test_session_is_closed_to_make_room_if_other_weights_were_converted(tmp_path: Path) -> None:
    with OnnxRuntimeSession(_graph(tmp_path / "model.onnx"), seldom=True) as session:
        assert session.mapped == 2 * SIDE**2 and not session.trim()


@pytest.mark.usefixtures("small", "kept")
@pytest.mark.parametrize("seldom", [False, True])
def test_mapped_weights_live_as_long_as_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seldom: bool
) -> None:
    """Another thread may close the session meanwhile, and ONNX Runtime only borrows them."""
    made: list[weakref.ref[MappedInitializers]] = []
    halves = MappedInitializers.halves

    def note(*arguments: Any) -> MappedInitializers | None:
        found = halves(*arguments)
        assert found is not None
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(MappedInitializers, "halves", note)
    session = OnnxRuntimeSession(_chain(tmp_path / "model.onnx"), seldom=seldom)
    in_a_call = session._opened()
    session.close()
    assert made[0]() is not None
    del in_a_call
    gc.collect()
    assert made[0]() is None


@pytest.mark.usefixtures("small", "kept")
def test_graph_that_is_stored_has_the_same_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its halves too, so that the next process computes the same bits."""
    path, stored = _graph(tmp_path / "model.onnx"), tmp_path / "stored.onnx"
    with OnnxRuntimeSession(path, keep=stored) as session:
        assert not session.mapped
    model = onnx.load(stored, load_external_data=False)
    (half,) = (each for each in model.graph.initializer if each.name == f"matrix{STORED}")
    assert half.data_type == TensorProto.FLOAT16
    place = {entry.key: entry.value for entry in half.external_data}
    assert place["location"] == data_path(stored).name
    expected = _output(path)
    pixels = np.random.default_rng(1).standard_normal((2, 4, 16, 16)).astype(np.float32)
    monkeypatch.setattr(widened_weights, "SMALLEST", 2**40)  # it is opened as it is
    with OnnxRuntimeSession(stored, optimization="none") as session:
        assert (session.run({"x": pixels})["y"] == expected).all()


def _branch() -> onnx.NodeProto:
    """An operator with a graph inside that uses the factor."""
    nodes = [helper.make_node("MatMul", ["t", "matrix"], ["z"])]
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT16, None)
    inside = helper.make_graph(nodes, "inside", [], [output])
    return helper.make_node("If", ["condition"], ["z2"], then_branch=inside, else_branch=inside)


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph.node.append(helper.make_node("Identity", ["matrix"], ["z"])),
        lambda graph: graph.node.append(helper.make_node("MatMul", ["matrix", "t"], ["z"])),
        lambda graph: graph.input.append(
            helper.make_tensor_value_info("matrix", TensorProto.FLOAT16, [SIDE, SIDE])
        ),
        lambda graph: setattr(graph.node[3], "domain", "other"),
        lambda graph: graph.node.append(_branch()),
    ],
    ids=[
        "another operator",
        "the left factor",
        "an input",
        "of that name",
        "inside of an operator",
    ],
)
def test_weights_with_other_uses_are_no_factors(
    tmp_path: Path, change: Callable[[onnx.GraphProto], object]
) -> None:
    path = _graph(tmp_path / "model.onnx")
    assert survey(path).factors == {"matrix"}
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    assert not survey(path).factors
