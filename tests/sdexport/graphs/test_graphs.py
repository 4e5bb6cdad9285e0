"""Every graph of every family is valid, and the parsers of other libraries accept it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.plans import CAPABILITIES, OPSETS, build_small
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines import open_session
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.onnx_file.operators import unknown_parts
from sdexport.graphs.precision import OPSET_OF_BF16, PRECISIONS, conversion
from sdexport.graphs.trace import trace
from sdexport.graphs.wrappers import parts
from tests.helpers.families import FAMILIES, build
from tests.helpers.traces import shared_traces

QUICK = ("sd1", "sdxl")


@functools.cache
def rtx_logger() -> Any:
    """One for the process: TensorRT keeps the first one."""
    import tensorrt_rtx as trt

    return trt.Logger(trt.Logger.ERROR)


def assert_parsed_by_tensorrt_rtx(path: Path) -> None:
    import tensorrt_rtx as trt

    builder = trt.Builder(rtx_logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, rtx_logger())
    accepted = parser.parse_from_file(str(path))
    errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert accepted and not errors, f"{path.parent.name}: {errors}"
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    model = onnx.load(path, load_external_data=False)
    assert names == {value.name for value in model.graph.input}


def assert_valid(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    known = {value.name for value in inferred.graph.value_info}
    produced = {name for node in inferred.graph.node for name in node.output if name}
    assert produced <= known | {value.name for value in inferred.graph.output}
    with open_session(path) as session:
        assert [spec.name for spec in session.inputs] == [v.name for v in model.graph.input]


@pytest.fixture(
    scope="module",
    params=[pytest.param(f, marks=[] if f in QUICK else [pytest.mark.slow]) for f in FAMILIES],
)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Checkpoint, Callable[[str], Any]]]:
    """A checkpoint and its `load`; modules are loaded and traced once."""
    checkpoint = Checkpoint.open(build(request.param, tmp_path_factory.mktemp("graphs") / "sd"))
    with shared_traces():
        yield checkpoint, functools.cache(checkpoint.load)


def assert_builds_with_tensorrt_rtx(path: Path) -> None:
    """For 8.6, 8.9 and 12.0 at once; in fp16 a UNet's attention is one kernel if heads allow it."""
    pytest.importorskip("polygraphy")
    built = build_small(path, path.parent, static_only=True)
    assert "failed" not in built, f"{path.parent.name}: {built['message']}"
    (profile,) = built["profiles"]
    assert profile["attention"]["total"] > 0 or path.parent.name == "vae_decoder"
    if path.parent.name == "unet":
        reasons = {each["reason"] for each in profile["separate"]}
        assert reasons <= {"heads of 8; fused kernels take at least 9"}


@pytest.mark.parametrize("opset", [23, pytest.param(18, marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_are_accepted(
    family: tuple[Checkpoint, Callable[[str], Any]], precision: str, opset: int, tmp_path: Path
) -> None:
    checkpoint, load = family
    for part in parts(checkpoint.configs):
        change = conversion(
            precision, part.component, checkpoint.family, checkpoint.configs[part.source]
        )
        path = tmp_path / part.name / "model.onnx"
        trace(part, load(part.source), path, opset=opset, change=change)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_valid(path)
            assert_parsed_by_tensorrt_rtx(path)
        if precision == "fp16":
            assert_builds_with_tensorrt_rtx(path)
        found = survey(path)
        assert (found.problems, unknown_parts(found)) == ((), [])


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_graphs_build_for_each_gpu(
    family: tuple[Checkpoint, Callable[[str], Any]],
    capability: str,
    precision: str,
    opset: int,
    tmp_path: Path,
) -> None:
    """TensorRT-RTX builds every graph for each compute capability, for fixed and dynamic sizes."""
    if precision == "bf16" and opset < OPSET_OF_BF16:
        pytest.skip(f"bf16 needs opset {OPSET_OF_BF16}")
    checkpoint, load = family
    for part in parts(checkpoint.configs):
        config = checkpoint.configs[part.source]
        change = conversion(precision, part.component, checkpoint.family, config)
        path = tmp_path / part.name / "model.onnx"
        trace(part, load(part.source), path, opset=opset, change=change)
        built = build_small(path, tmp_path, [capability])
        assert "failed" not in built, f"{part.name}: {built['message']}"
        assert len(built["profiles"]) == 2
