"""Weights that stay where they are mapped: the same results, and memory that can be freed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdexport import open_session
from sdexport.engines.ort import mapped_initializers
from sdexport.engines.ort.mapped_initializers import MappedInitializers
from sdexport.engines.process_memory import mapped_files_bytes
from tests.tolerances import MAPPED_PRODUCT_REL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is freed on Linux alone")
SIDE, LAYERS = 1024, 4
CPU = "CPUExecutionProvider"


def _graph(path: Path, dtype: type[np.floating] = np.float32, *, external: bool = True) -> Path:
    """Four matrix products, with 16 MB of weights in float32."""
    random = np.random.default_rng(0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = [
        numpy_helper.from_array((random.standard_normal((SIDE, SIDE)) / 32).astype(dtype), f"w{k}")
        for k in range(LAYERS)
    ]
    nodes = [helper.make_node("Cast", ["x0"], ["h0"], to=kind)]
    nodes += [helper.make_node("MatMul", [f"h{k}", f"w{k}"], [f"h{k + 1}"]) for k in range(LAYERS)]
    nodes += [helper.make_node("Cast", [f"h{LAYERS}"], [f"x{LAYERS}"], to=TensorProto.FLOAT)]
    names, sizes = ("x0", f"x{LAYERS}"), ["b", SIDE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in names]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=10),
        path,
        save_as_external_data=external,
        location=f"{path.name}_data",
    )
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_initializers, "SMALLEST", 1)


@pytest.mark.usefixtures("small")
def test_results_agree_and_memory_is_freed_and_filled_again(tmp_path: Path) -> None:
    path = _graph(tmp_path / "model.onnx")
    feeds = {"x0": np.random.default_rng(1).standard_normal((77, SIDE)).astype(np.float32)}
    with open_session(path) as usual, open_session(path, seldom=True) as session:
        assert not usual.mapped and not usual.trim()
        assert session.mapped == 4 * LAYERS * SIDE**2
        first = session.run(feeds)[f"x{LAYERS}"]
        scale = np.abs(first).max()
        assert np.abs(usual.run(feeds)[f"x{LAYERS}"] - first).max() <= MAPPED_PRODUCT_REL * scale
        before = mapped_files_bytes()
        assert session.trim()
        assert before - mapped_files_bytes() > session.mapped // 2
        assert (session.run(feeds)[f"x{LAYERS}"] == first).all()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "options", [{"prepacking": False}, {"providers": ["CPUExecutionProvider"]}]
)
def test_it_has_no_effect_on_sessions_with_options_of_their_own(
    tmp_path: Path, options: dict[str, object]
) -> None:
    path = _graph(tmp_path / "model.onnx")
    with open_session(path, seldom=True, **options) as session:
        assert bool(session.mapped) == ("providers" in options)


@pytest.mark.usefixtures("small")
def test_other_graphs_open_as_usual(tmp_path: Path) -> None:
    inside = _graph(tmp_path / "inside.onnx", external=False)
    half = _graph(tmp_path / "half.onnx", np.float16)
    assert MappedInitializers.of(inside) is None and MappedInitializers.of(half) is None
    for path in (inside, half):
        with open_session(path, seldom=True) as session:
            assert not session.mapped
            assert session.run({"x0": np.ones((1, SIDE), np.float32)})


def test_small_graphs_open_as_usual(tmp_path: Path) -> None:
    assert MappedInitializers.of(_graph(tmp_path / "model.onnx")) is None
    assert TensorProto.FLOAT == mapped_initializers._FLOAT


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("length", [0, 5, 4 * SIDE**2])
def test_truncated_weights_are_one_line(tmp_path: Path, length: int) -> None:
    path = _graph(tmp_path / "model.onnx")
    data = tmp_path / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:length])
    with pytest.raises(Exception, match=r"empty|cannot load") as caught:
        open_session(path, seldom=True)
    assert type(caught.value).__name__ == "EngineError" and "\n" not in str(caught.value)
