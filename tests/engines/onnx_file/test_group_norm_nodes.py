"""Group normalization written with instance normalization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sdexport.engines import EngineError, open_session
from sdexport.engines.onnx_file.group_norm_nodes import with_instance_norms
from sdexport.engines.ort.onnxruntime_session import OnnxRuntimeSession
from sdexport.engines.ort.prepared.prepared_graph import data_path
from tests.tolerances import COMPONENT_REL, HALF_GROUP_NORM_REL, assert_close

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def _write(
    path: Path,
    channels: int,
    *,
    scales: int | None = None,
    weight_names: tuple[str, str] = ("scale", "bias"),
    rank: int = 4,
    dtype: str = "float32",
    opset: int = 23,
    external: bool = False,
    **settings: Any,
) -> Path:
    """y = norm(x, scale, bias). scales: how many; None for one for each channel."""
    rng = np.random.default_rng(channels)
    count = channels if scales is None else scales
    weights = {name: rng.standard_normal(count).astype(dtype) for name in weight_names}
    sizes = ["batch", channels, *(f"size{i}" for i in range(rank - 2))]
    edge = [helper.make_tensor_value_info(name, TYPES[dtype], sizes) for name in "xy"]
    node = helper.make_node("GroupNormalization", ["x", *weights], ["y"], **settings)
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([node], "vae", edge[:1], edge[1:], initializers)
    opsets = [helper.make_opsetid("", opset)]
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=data_path(path).name,
        size_threshold=0,
    )
    return path


def _run(path: Path | bytes, feeds: dict[str, np.ndarray], tmp_path: Path) -> np.ndarray:
    if isinstance(path, bytes):
        onnx.checker.check_model(path, full_check=True)
        (tmp_path / "changed.onnx").write_bytes(path)
        path = tmp_path / "changed.onnx"
    with open_session(path) as session:
        return session.run(feeds)["y"]


@pytest.mark.parametrize("seed", range(12))
def test_with_instance_norms_computes_what_torch_does(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 9))
    channels, rank = groups * int(rng.integers(1, 5)), int(rng.integers(3, 6))
    dtype = ["float32", "float16"][seed % 2]
    epsilon = float(rng.choice([1e-6, 1e-5, 0.1]))
    given = {"epsilon": epsilon} if rng.random() < 0.8 else {}
    path = _write(
        tmp_path / "vae" / "model.onnx",
        channels,
        rank=rank,
        dtype=dtype,
        num_groups=groups,
        **given,
    )
    content = with_instance_norms(path, "vae")
    assert content is not None
    assert "GroupNormalization" not in {
        n.op_type for n in onnx.load_from_string(content).graph.node
    }
    shape = (int(rng.integers(1, 4)), channels, *rng.integers(1, 6, rank - 2))
    x = (3 * rng.standard_normal(shape) + 1).astype(dtype)
    expected = torch.nn.functional.group_norm(
        torch.from_numpy(x).float(), groups, *_weights(path), eps=given.get("epsilon", 1e-5)
    )
    rel = COMPONENT_REL if dtype == "float32" else HALF_GROUP_NORM_REL
    assert_close(_run(content, {"x": x}, tmp_path), expected.numpy(), rel=rel)
    assert with_instance_norms(content, "vae") is None


def _weights(path: Path) -> list[torch.Tensor]:
    """Scale and bias in float32."""
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    return [torch.from_numpy(stored[name].astype(np.float32)) for name in ("scale", "bias")]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_groups": 4, "stash_type": TensorProto.FLOAT16},
        {"num_groups": 4, "opset": 20},  # a scale and a bias for each group
        {"num_groups": 1025},
    ],
)
def test_other_group_norms_stay(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert with_instance_norms(_write(tmp_path / "model.onnx", 4, **settings), "vae") is None


@pytest.mark.parametrize(
    ("scales", "groups"), [(2, 2), (3, 2), (6, 4)], ids=["two", "three", "no multiple"]
)
def test_weights_that_do_not_fit_fail(tmp_path: Path, scales: int, groups: int) -> None:
    path = _write(tmp_path / "model.onnx", 6, scales=scales, num_groups=groups)
    with pytest.raises(EngineError):
        _run(path, {"x": np.ones((2, 6, 3, 3), np.float32)}, tmp_path)


def test_names_of_the_graph_do_not_matter(tmp_path: Path) -> None:
    path = _write(tmp_path / "model.onnx", 4, weight_names=("y.scale", "y.bias"), num_groups=2)
    assert _run(path, {"x": np.ones((1, 4, 2, 2), np.float32)}, tmp_path).shape == (1, 4, 2, 2)


def test_damaged_model_is_an_engine_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "model.onnx", 4, num_groups=2)
    content = path.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(EngineError, match="vae"):
            with_instance_norms(path, "vae")


@pytest.mark.parametrize("optimization", ["all", "extended", "basic", "none"])
def test_onnxruntime_session_runs_one_kernel(tmp_path: Path, optimization: str) -> None:
    """As ONNX Runtime writes the graph that it runs; without optimization nothing is rewritten."""
    path = _write(tmp_path / "vae" / "model.onnx", 6, num_groups=2, external=True)
    kept = tmp_path / "kept.onnx"
    OnnxRuntimeSession(path, optimization=optimization, keep=kept).close()
    kinds = {node.op_type for node in onnx.load(kept, load_external_data=False).graph.node}
    assert ("InstanceNormalization" in kinds) == (optimization != "none")
    assert ("ReduceMean" in kinds) == (optimization == "none")


def test_weights_may_be_in_linked_files(tmp_path: Path) -> None:
    """As in the folders of a hub's cache."""
    path = _write(tmp_path / "vae" / "model.onnx", 6, num_groups=2, external=True)
    x = np.random.default_rng(0).standard_normal((1, 6, 3, 3), np.float32)
    expected = _run(path, {"x": x}, tmp_path)
    data = data_path(path)
    blob = tmp_path / "blob"
    data.rename(blob)
    data.symlink_to(blob)
    np.testing.assert_array_equal(_run(path, {"x": x}, tmp_path), expected)
    elsewhere = tmp_path / "model"  # the model alone is a link
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    data.unlink()
    blob.rename(data)
    np.testing.assert_array_equal(_run(path, {"x": x}, tmp_path), expected)
