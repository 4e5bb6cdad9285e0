"""Verification finds damaged layers, even if all hashes agree, and names the component."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import damages as benchmark
from sdexport import Package
from sdexport.verification.verifier import verify_package
from tests.helpers.damages import COMPONENTS, KINDS, Damage, Graph, damaged_copy

SAMPLE = (
    Damage("text_encoder", "layer x 1.03", "node_MatMul_70"),
    Damage("unet", "layer x 0.97", "node_linear"),
    Damage("vae_decoder", "weights in 6 bits", "node_conv2d_23"),
    Damage("vae_encoder", "bias dropped", "node_conv2d_8"),
)
"""Of the damages that the benchmark draws: those that change the outputs least."""
KNOWN = (
    ("unet", "mid_block.resnets.1.conv2.weight", "layer zeroed"),
    ("unet", "conv_out.weight", "layer x 1.03"),
    ("unet", "down_blocks.1.resnets.0.conv1.weight", "layer x 1.1"),
    ("vae_decoder", "decoder.conv_out.weight", "layer x 1.02"),
)
"""Damages that earlier versions did not find in fp16, for they compared the cosine alone."""


@pytest.mark.parametrize("damage", SAMPLE, ids=lambda each: each.component)
def test_verify_finds_a_damaged_layer_in_fp16(
    half_package: Path, damage: Damage, tmp_path: Path
) -> None:
    folder = damaged_copy(half_package, damage, tmp_path / "package")
    checks = verify_package(Package.load(folder), only=damage.component)
    assert {check.name for check in checks} - {"package", *COMPONENTS} <= {
        f"text_encoder.{graph}" for graph in ("token_embedding", "inputs_embeds", "attention_mask")
    }
    failed = {check.name.partition(".")[0] for check in checks if not check.passed}
    assert failed == {damage.component}


@pytest.mark.parametrize(("component", "weight", "kind"), KNOWN)
def test_verify_finds_scaled_layers_as_the_graph_runs(
    half_package: Path, component: str, weight: str, kind: str, tmp_path: Path
) -> None:
    """Also without the comparison in float32: against PyTorch, in float16."""
    graph = Graph(half_package / component / "model.onnx")
    damage = Damage(component, kind, graph.node_with(weight))
    folder = damaged_copy(half_package, damage, tmp_path / "package")
    check, *_ = verify_package(Package.load(folder), hashes=False, only=component)
    assert not check.passed
    beyond = {measure.kind for measure in check.measures if measure.share > 1}
    assert {"relative_l2", "float32_relative_l2"} <= beyond


def test_damages_change_what_they_say(package: Path) -> None:
    """Each kind changes the weights or attributes of one node, or of the two that are swapped."""
    graph = Graph(package / "unet" / "model.onnx")
    node = "node_conv2d_15"
    for kind in KINDS:
        changed = Graph(graph.path)
        target = "node_group_norm" if kind.startswith("epsilon") else node
        same = [n for n in graph.nodes("layers swapped") if graph.shape(n) == graph.shape(node)]
        changed.apply(Damage("unet", kind, target, other=next(n for n in same if n != node)))
        tensors = zip(graph.model.graph.initializer, changed.model.graph.initializer, strict=True)
        different = [a.name for a, b in tensors if a != b]
        nodes = zip(graph.model.graph.node, changed.model.graph.node, strict=True)
        other = [a.name for a, b in nodes if a != b]
        expected = {"layers swapped": (2, 0), "epsilon x 1000": (0, 1)}.get(kind, (1, 0))
        assert (len(different), len(other)) == expected, kind


@pytest.mark.slow
def test_verify_finds_every_damage(tmp_path: Path) -> None:
    """40 damages in four precisions on ONNX Runtime and OpenVINO."""
    pytest.importorskip("openvino")
    report = benchmark.damages(tmp_path)
    assert report["damages"] == benchmark.COUNT and report["runs"] == 7 * benchmark.COUNT
    assert [row for row in report["rows"] if not row["caught"]] == []


@pytest.mark.slow
def test_verify_passes_every_healthy_package(tmp_path: Path) -> None:
    """Every family, precision, backend, number of threads and kind of session."""
    pytest.importorskip("openvino")
    report = benchmark.healthy(tmp_path)
    assert report["runs"] >= 200
    assert [row["failed"] for row in report["rows"] if not row["passed"]] == []
