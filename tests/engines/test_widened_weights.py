"""Half-precision weights that are converted before ONNX Runtime gets them: the same results."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdexport import open_session
from sdexport.engines.errors import EngineError
from sdexport.engines.ort import widened_weights
from sdexport.engines.ort.widened_weights import widens

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is freed on Linux alone")
SIDE = 64


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened_weights, "SMALLEST", 1)


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
