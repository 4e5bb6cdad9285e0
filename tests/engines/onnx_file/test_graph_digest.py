"""The digest of a graph without its weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines import EngineError
from sdexport.engines.files import sha256_of
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.export_steps import DEFAULT_OPSET
from sdexport.graphs.trace import trace
from sdexport.graphs.wrappers import parts

MODEL = Path("text_encoder") / "model.onnx"


@pytest.fixture
def model(package: Path) -> onnx.ModelProto:
    return onnx.load(package / MODEL)


def digest(model: onnx.ModelProto, folder: Path, **options: object) -> str:
    path = folder / "model.onnx"
    onnx.save(model, path, **options)
    return graph_digest(path)


def weight(model: onnx.ModelProto, *, floats: bool) -> onnx.TensorProto:
    """The largest initializer of the kind."""
    kind = [t for t in model.graph.initializer if (t.data_type == 1) == floats]
    return max(kind, key=lambda tensor: len(tensor.raw_data))


def test_digest_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """Sidecars hold it: another value would make every engine stale."""
    initializers = [
        numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(2, 4), "weight"),
        numpy_helper.from_array(np.float32(0.5), "scalar"),
        numpy_helper.from_array(np.array([2, -1]), "shape"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Mul", ["product", "scalar"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 4]) for n in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], initializers)
    opset = helper.make_opsetid("", 18)
    path = tmp_path / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, ir_version=10, opset_imports=[opset]).SerializeToString()
    )
    expected = "aa0cec79753353814e1a7700aa9473ced8a166ab553902a42effa1b9283a5f5c"
    assert graph_digest(path) == expected


def test_digest_is_the_same_with_other_weights(model: onnx.ModelProto, tmp_path: Path) -> None:
    before = digest(model, tmp_path)
    tensor = weight(model, floats=True)
    values = numpy_helper.to_array(tensor) + np.float32(1)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert digest(model, tmp_path) == before


@pytest.mark.parametrize("what", ["node", "name", "shape", "integers", "opset", "output"])
def test_digest_changes_with_the_graph(model: onnx.ModelProto, tmp_path: Path, what: str) -> None:
    before = digest(model, tmp_path)
    if what == "node":
        model.graph.node[3].op_type += "X"
    elif what == "name":
        weight(model, floats=True).name += "x"
    elif what == "shape":
        tensor = weight(model, floats=True)
        tensor.dims.insert(0, 1)
    elif what == "integers":
        tensor = weight(model, floats=False)
        values = numpy_helper.to_array(tensor) + 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    elif what == "opset":
        model.opset_import[0].version += 1
    else:
        del model.graph.output[-1]
    assert digest(model, tmp_path) != before


def test_digest_of_external_weights(model: onnx.ModelProto, tmp_path: Path) -> None:
    digests = []
    for number in (0, 1):
        tensor = weight(model, floats=True)
        values = numpy_helper.to_array(tensor) * np.float32(2)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        folder = tmp_path / str(number)
        folder.mkdir()
        saved = onnx.ModelProto.FromString(model.SerializeToString())
        options = {"save_as_external_data": True, "location": f"data.{number}"}
        digests.append(digest(saved, folder, **options))
    assert digests[0] == digests[1]


def test_digest_of_two_exports_of_one_architecture(
    modules: dict[str, Any], checkpoint: Path, package: Path, tmp_path: Path
) -> None:
    """What a merged LoRA does to a text encoder: other weights under the same names."""
    part = parts(Checkpoint.open(checkpoint).configs)[0]
    changed = copy.deepcopy(modules["text_encoder"])
    with torch.no_grad():
        for value in changed.parameters():
            if value.ndim == 2:
                value.mul_(1.01)
    trace(part, changed, tmp_path / "model.onnx", opset=DEFAULT_OPSET)
    assert graph_digest(tmp_path / "model.onnx") == graph_digest(package / MODEL)
    assert sha256_of(tmp_path / "model.onnx") != sha256_of(package / MODEL)


def test_digest_rejects_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (b"", b"no model at all"):
        path.write_bytes(content)
        with pytest.raises(EngineError):
            graph_digest(path)
    with pytest.raises(FileNotFoundError):
        graph_digest(tmp_path / "none.onnx")
