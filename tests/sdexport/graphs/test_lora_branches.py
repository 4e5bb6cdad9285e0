"""Graphs that take the factors of LoRAs as inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from sdexport import Package, PackageError
from sdexport.engines import open_session
from sdexport.engines.errors import CheckpointError
from sdexport.graphs.lora_branches import add_lora_inputs
from sdexport.graphs.lora_layers import LoraLayer, find_layers
from sdexport.runtime.adapters.lora_inputs import is_lora_input
from sdexport.verification.verifier import verify
from tests.tolerances import LORA_GRAPH_L2

GRAPHS = {"lora", "lora_inputs_embeds", "lora_attention_mask"}


def test_package_lists_the_graphs_and_their_references(lora_package: Path) -> None:
    package = Package.load(lora_package)
    found = {graph.partition(".")[2] for graph in package.graphs if "text_encoder." in graph}
    assert found >= GRAPHS
    assert "unet.lora" in package.graphs and "vae_decoder.lora" not in package.graphs
    assert (lora_package / "reference" / "unet.lora.npz").is_file()
    for graph in ("unet", "text_encoder"):  # they share the weights
        assert package.surveys.of(f"{graph}.lora").locations == {"model.onnx_data"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_verification_covers_them(lora_package: Path, backend: str) -> None:
    checks = verify(lora_package, backend)
    rows = [check for check in checks if ".lora" in check.name]
    assert {check.name for check in rows} >= {"unet.lora", "text_encoder.lora"}
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]


def test_damaged_branch_is_noticed(lora_package: Path, tmp_path: Path) -> None:
    """An input that is left out of the graph's sum gives other outputs than PyTorch's."""
    model = ir.load(lora_package / "unet" / "lora.onnx")
    for node in model.graph:
        if node.op_type == "Add" and str(node.name).startswith("lora.mid_block.resnets.0.conv1"):
            node.replace_input_with(1, node.inputs[0])
    path = tmp_path / "unet" / "model.onnx"
    path.parent.mkdir()
    ir.save(model, path, external_data="model.onnx_data")
    assert difference(path, lora_package) > LORA_GRAPH_L2


def test_graph_equals_pytorch(lora_package: Path) -> None:
    assert difference(lora_package / "unet" / "lora.onnx", lora_package) < LORA_GRAPH_L2


def difference(path: Path, package: Path) -> float:
    """Relative to PyTorch's output, of the reference of the UNet's graph."""
    with np.load(package / "reference" / "unet.lora.npz") as arrays, open_session(path) as session:
        feeds = {spec.name: arrays[f"input.{spec.name}"] for spec in session.inputs}
        expected = arrays["output.out_sample"]
        actual = session.run(feeds)["out_sample"]
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_every_layer_has_two_inputs_of_its_own_rank(lora_package: Path) -> None:
    config = json.loads((lora_package / "unet" / "config.json").read_text())
    assert config["layers_per_block"] == 1
    with open_session(lora_package / "unet" / "lora.onnx") as session:
        names = [spec.name for spec in session.inputs if is_lora_input(spec.name)]
        shapes = {spec.name: spec.shape for spec in session.inputs}
    assert len(names) == len(set(names)) and len(names) % 2 == 0
    assert shapes["lora.conv_in.down"] == ("conv_in.rank_3x3", 4)
    assert shapes["lora.conv_in.up"] == ("lora_rows", 16, "conv_in.rank")
    assert shapes["lora.time_embedding.linear_1.down"] == (16, "time_embedding.linear_1.rank")
    assert shapes["lora.time_embedding.linear_1.up"][0] == "lora_rows"


def test_plain_graph_is_the_same_with_and_without(lora_package: Path, plain_of_lora: Path) -> None:
    """The same nodes and weights, and the same outputs bit for bit."""
    for name in ("unet", "text_encoder"):
        paths = [folder / name / "model.onnx" for folder in (lora_package, plain_of_lora)]
        one, two = (onnx.load(path).graph for path in paths)
        assert list(one.node) == list(two.node)
        weights = [
            {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
            for graph in (one, two)
        ]
        assert weights[0].keys() == weights[1].keys()
        assert all(np.array_equal(value, weights[1][key]) for key, value in weights[0].items())
        with np.load(lora_package / "reference" / f"{name}.npz") as arrays:
            outputs = []
            for path in paths:
                with open_session(path) as session:
                    feeds = {spec.name: arrays[f"input.{spec.name}"] for spec in session.inputs}
                    outputs.append(session.run(feeds))
        assert all(np.array_equal(value, outputs[1][key]) for key, value in outputs[0].items())


def test_package_without_them_says_how_to_get_them(package: Path) -> None:
    with pytest.raises(PackageError, match=r"no unet/lora\.onnx, which LoRAs need; .*--lora-input"):
        Package.load(package).model_path("unet.lora")


def test_layers_without_a_node_are_named() -> None:
    module: Any = torch.nn.Sequential(torch.nn.Linear(2, 3))
    with pytest.raises(CheckpointError, match="0: no node computes this layer"):
        find_layers(ir.Graph([], [], nodes=[], name="unet"), module, {})
    layer = LoraLayer("0", "node_0", 2, 3, (), 2)
    with pytest.raises(CheckpointError, match="no node node_0 for 0"):
        add_lora_inputs(ir.Graph([], [], nodes=[], name="unet"), [layer])


@pytest.fixture(scope="module")
def plain_of_lora(lora_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graphs traced without LoRA inputs."""
    from sdexport.checkpoints.diffusers_folder import Checkpoint
    from sdexport.graphs.trace import trace
    from sdexport.graphs.wrappers import parts

    folder = tmp_path_factory.mktemp("plain")
    checkpoint = Checkpoint.open(lora_folder / "checkpoint")
    for part in parts(checkpoint.configs):
        if part.name in ("unet", "text_encoder"):
            notes = {
                entry.key: entry.value
                for entry in onnx.load(
                    lora_folder / "package" / part.name / "model.onnx", load_external_data=False
                ).metadata_props
            }
            path = folder / part.name / "model.onnx"
            trace(part, checkpoint.load(part.source), path, opset=23, notes=notes)
    return folder
