"""Graphs of UNets that take T2I-Adapters and IP-Adapters."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sdexport.engines import open_session
from sdexport.engines.errors import CheckpointError
from sdexport.exporter import export
from sdexport.graphs.lora_layers import LoraLayer
from sdexport.graphs.unet_blocks import UnetBlocks, image_attention
from sdexport.verification.verifier import verify
from tests.helpers.families import build
from tests.tolerances import ADAPTER_GRAPH_L2

GRAPHS = ("t2i_adapter", "ip_adapter", "adapters")


def difference(path: Path, package: Path, graph: str) -> float:
    """Relative to PyTorch's output, of the reference of a UNet's graph."""
    with np.load(package / "reference" / f"unet.{graph}.npz") as arrays:
        with open_session(path) as session:
            feeds = {spec.name: arrays[f"input.{spec.name}"] for spec in session.inputs}
            actual = session.run(feeds)["out_sample"]
        expected = arrays["output.out_sample"]
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_graphs_equal_pytorch(image_adapters: Path) -> None:
    check_graphs(image_adapters / "package")


def check_graphs(folder: Path) -> None:
    outputs = {}
    for graph in GRAPHS:
        assert difference(folder / "unet" / f"{graph}.onnx", folder, graph) < ADAPTER_GRAPH_L2
        with np.load(folder / "reference" / f"unet.{graph}.npz") as arrays:
            outputs[graph] = arrays["output.out_sample"]
    with np.load(folder / "reference" / "unet.npz") as arrays:
        outputs["plain"] = arrays["output.out_sample"]
    for one, two in itertools.combinations(outputs.values(), 2):  # each input has an effect
        assert np.linalg.norm(one - two) > 1000 * ADAPTER_GRAPH_L2 * np.linalg.norm(two)


def test_left_out_addition_is_noticed(image_adapters: Path, tmp_path: Path) -> None:
    """A graph that ignores an input gives other outputs than PyTorch's."""
    folder = image_adapters / "package"
    for graph, start in (("t2i_adapter", "t2i_adapter.1."), ("ip_adapter", "ip_adapter.mid_block")):
        model = ir.load(folder / "unet" / f"{graph}.onnx")
        added = [n for n in model.graph if n.op_type == "Add" and str(n.name).startswith(start)]
        added[-1].replace_input_with(1, added[-1].inputs[0])
        path = tmp_path / graph / "model.onnx"
        path.parent.mkdir()
        ir.save(model, path, external_data="model.onnx_data")
        assert difference(path, folder, graph) > 10 * ADAPTER_GRAPH_L2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd2-v"])
@pytest.mark.parametrize(
    ("opset", "precision"), [(18, "fp32"), (24, "fp32"), (23, "fp16"), (20, "int8")]
)
def test_every_opset_and_precision_is_verified(
    family: str, opset: int, precision: str, tmp_path: Path
) -> None:
    """The export itself compares every graph with PyTorch; OpenVINO does afterwards."""
    export(
        build(family, tmp_path / "checkpoint"),
        tmp_path / "package",
        opset=opset,
        precision=precision,
        lora_inputs=True,
        controlnet_inputs=True,
        t2i_adapter_inputs=True,
        ip_adapter_inputs=True,
    )
    for backend in ("onnxruntime", "openvino"):
        checks = verify(tmp_path / "package", backend)
        assert {c.name for c in checks} >= {f"unet.{graph}" for graph in GRAPHS}
        assert all(check.passed for check in checks), [c for c in checks if not c.passed]


def test_unets_of_other_structure_are_named() -> None:
    graph = ir.Graph([], [], nodes=[], name="unet")
    layer = LoraLayer("down_blocks.0.attentions.0.proj_out", "node_0", 2, 3, (), 2)
    with pytest.raises(CheckpointError, match=r"down_blocks\.0: its structure is not supported"):
        UnetBlocks(graph, [LoraLayer("down_blocks.0.x", "node_0", 2, 3, (), 2)]).ends()
    with pytest.raises(CheckpointError, match=r"no node node_0 for down_blocks\.0\.attentions"):
        UnetBlocks(graph, [layer]).ends()
    query = LoraLayer("down_blocks.0.attentions.0.x.attn2.to_q", "node_0", 2, 3, (), 2, 2)
    with pytest.raises(CheckpointError, match="an attention that IP-Adapters do not support"):
        list(image_attention([query]))
