"""Graphs of UNets that take T2I-Adapters and IP-Adapters."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from sdexport.engines import open_session
from sdexport.exporter import export
from sdexport.verification.verifier import verify
from tests.helpers.families import build
from tests.tolerances import ADAPTER_GRAPH_L2

GRAPHS = ("t2i_adapter", "ip_adapter", "adapters")


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose UNet takes LoRAs, T2I-Adapters and IP-Adapters."""
    where = tmp_path_factory.mktemp(request.param)
    export(
        build(request.param, where / "checkpoint"),
        where / "package",
        lora_inputs=True,
        t2i_adapter_inputs=True,
        ip_adapter_inputs=True,
    )
    return where / "package"


def difference(path: Path, package: Path, graph: str) -> float:
    """Relative to PyTorch's output, of the reference of a UNet's graph."""
    with np.load(package / "reference" / f"unet.{graph}.npz") as arrays:
        with open_session(path) as session:
            feeds = {spec.name: arrays[f"input.{spec.name}"] for spec in session.inputs}
            actual = session.run(feeds)["out_sample"]
        expected = arrays["output.out_sample"]
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_graphs_equal_pytorch(folder: Path) -> None:
    outputs = {}
    for graph in GRAPHS:
        assert difference(folder / "unet" / f"{graph}.onnx", folder, graph) < ADAPTER_GRAPH_L2
        with np.load(folder / "reference" / f"unet.{graph}.npz") as arrays:
            outputs[graph] = arrays["output.out_sample"]
    with np.load(folder / "reference" / "unet.npz") as arrays:
        outputs["plain"] = arrays["output.out_sample"]
    for one, two in itertools.combinations(outputs.values(), 2):  # each input has an effect
        assert np.linalg.norm(one - two) > 1000 * ADAPTER_GRAPH_L2 * np.linalg.norm(two)


def test_openvino_equals_pytorch_as_well(folder: Path) -> None:
    pytest.importorskip("openvino")
    checks = verify(folder, "openvino")
    rows = [check for check in checks if check.name.startswith("unet.")]
    assert {check.name.partition(".")[2] for check in rows} >= set(GRAPHS)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
