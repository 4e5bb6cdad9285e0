"""The list of an engine's layers: parsed from the builder's log, stored, and checked."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdexport.builds.layer_report import NOT_LISTED, layer_report, why_separate
from sdexport.engines import EngineError
from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.cache.sidecar import Sidecar, StoredFile, sidecar_path
from sdexport.engines.trt.engine_build import build_plan
from sdexport.engines.trt.engine_layers import (
    LAYERS_LIMIT,
    Attention,
    EngineLayers,
    layers_path,
    parse_layers,
    read_layers,
)

TENSOR = "{ Name: x, Dimensions: [2,-1,64], Strides: [1,1,1], Datatype: Half, Format: (NHWC) Y }"
FUSED = (
    f"Name: _gemm_mha_v2_myl1_3, LayerType: kgen, Inputs: [ {TENSOR}, {TENSOR}], Constants: [], "
    f"Outputs: [ {TENSOR}], TacticName: _gemm_mha_v2_0x9d, StreamId: 0, "
    "Metadata: [ONNX Layer: node_a [profile 1]]\x1f[ONNX Layer: node_b]"
)


def line(name: str, kind: str) -> str:
    return f"Name: {name}, LayerType: {kind}, Inputs: [], Outputs: [], TacticName: "


def test_parse_reads_names_types_tensors_nodes_and_the_profile() -> None:
    (layer,) = parse_layers([f"Layers:\n{FUSED}\n\nI/O Tensors:\n Name: x, IOMode: Input"])
    assert layer.name == "_gemm_mha_v2_myl1_3" and layer.type == "kgen"
    assert layer.inputs == ("Half[2,-1,64]",) * 2 and layer.outputs == ("Half[2,-1,64]",)
    assert layer.nodes == ("node_a", "node_b") and layer.profile == 1
    assert layer.kind == "attention" and layer.dtype == "Half"


def test_parse_takes_the_profile_of_a_part_from_any_of_its_layers() -> None:
    lines = [line("a_myl0_0", "gemm"), line("b_myl1_0", "gemm"), line("c [profile 1]_myl1_1", "x")]
    assert [layer.profile for layer in parse_layers(["\n".join(lines)])] == [0, 1, 1]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("_gemm_mha_v2_myl0_16", "kgen", "attention"),
        ("node_conv2d_1_myl0_2", "correlation", "convolution"),
        ("node_a+node_b_myl0_12", "gemm", "matrix product"),
        ("__myl_FcAddSilu_myl0_3", "runtime_fusion", "matrix product"),
        ("__myl_CastMulCastFc_myl0_3", "runtime_fusion", "matrix product"),
        ("__myl_MaxrSubExpSumDivMul_myl0_3", "kgen", "softmax"),
        ("__myl_SiluGnor_myl0_4", "kgen", "normalisation"),
        ("__myl_TranReshMove_myl0_9", "kgen", "reformatting"),
        ("Reformatting CopyNode for x", "Reformat", "reformatting"),
        ("__mye56055_0_myl0_0", "shape_call", "sizes"),
        ("cast_hvar^248531i64_myl0_1", "cast", "sizes"),
        ("__myl_MulAddSilu_myl0_1", "kgen", "other"),
        ("__myl_", "kgen", "other"),
        ("", "", "other"),
    ],
)
def test_layers_have_kinds(name: str, kind: str, expected: str) -> None:
    (layer,) = parse_layers([line(name, kind)])
    assert layer.kind == expected


def test_parse_leaves_out_lines_of_another_form() -> None:
    odd = ["", "Layers:", "Name: x", "Name: x, LayerType: y", "{}", "\x00" * 40, "é" * 3]
    assert parse_layers(odd) == () and parse_layers([]) == ()


def plan_with(tmp_path: Path, content: bytes | None) -> tuple[Path, Sidecar]:
    """An empty plan with a file of layers, and the sidecar of both."""
    plan = tmp_path / "unet.plan"
    plan.write_bytes(b"plan")
    files = {plan.name: StoredFile.of(plan)}
    if content is not None:
        layers_path(plan).write_bytes(content)
        files[layers_path(plan).name] = StoredFile.of(layers_path(plan))
    sidecar = Sidecar("unet", "tensorrt-rtx", "1", "", "", {}, (), {}, (), (), files=files)
    sidecar_path(plan).write_text(sidecar.to_json())
    return plan, sidecar


def stored(*layers: str, attention: tuple[Attention, ...] = ()) -> bytes:
    return EngineLayers(parse_layers(layers), attention).to_json().encode()


def entry(plan: Path) -> dict[str, Any]:
    return {"backend": "tensorrt-rtx", "plan": str(plan)}


def test_layers_are_read_as_they_were_written(tmp_path: Path) -> None:
    attention = (Attention("node_a", True, "half", 64),)
    plan, sidecar = plan_with(tmp_path, stored(FUSED, attention=attention))
    assert read_layers(plan, sidecar) == EngineLayers(parse_layers([FUSED]), attention)


def test_report_counts_kinds_and_attention_by_profile(tmp_path: Path) -> None:
    attention = (Attention("node_a", True, "half", 64), Attention("node_c", True, "half", 512))
    layers = stored(line("x_myl0_0", "gemm"), FUSED, attention=attention)
    report = layer_report(entry(plan_with(tmp_path, layers)[0]))
    first, second = report["profiles"]
    assert first["kinds"] == {"matrix product": 1} and first["attention"]["fused"] == 0
    assert second["kinds"] == {"attention": 1} and second["dtypes"] == {"Half": 1}
    assert second["attention"] == {"total": 2, "fused": 1}
    assert second["separate"] == [
        {"node": "node_c", "reason": "heads of 512; fused kernels take at most 256"}
    ]
    assert [each["kind"] for each in report["layers"]] == ["matrix product", "attention"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float"}, "its type is float; fused kernels take fp16 and bf16"),
        ({"head_size": 512}, "heads of 512; .* at most 256"),
        ({"head_size": 8}, "heads of 8; .* at least 9"),
        ({"single": False}, "matrix products and softmax; --opset 23"),
        ({"head_size": 0}, "the builder chose"),
    ],
)
def test_report_has_a_reason_for_each_separate_attention(
    changes: dict[str, Any], words: str
) -> None:
    attention = replace(Attention("n", True, "half", 64), **changes)
    assert re.search(words, why_separate(attention))


GOOD = json.loads(stored(FUSED, attention=(Attention("a", True, "half", 64),)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        json.dumps({**GOOD, "format_version": 2}).encode(),
        json.dumps({**GOOD, "layers": 3}).encode(),
        json.dumps({**GOOD, "layers": [[]]}).encode(),
        json.dumps({**GOOD, "layers": [{**GOOD["layers"][0], "profile": -1}]}).encode(),
        json.dumps({**GOOD, "layers": [{**GOOD["layers"][0], "nodes": [1]}]}).encode(),
        json.dumps({**GOOD, "attention": [{}]}).encode(),
        json.dumps({**GOOD, "attention": [{**GOOD["attention"][0], "single": 1}]}).encode(),
        json.dumps({**GOOD, "attention": [{**GOOD["attention"][0], "head_size": True}]}).encode(),
        json.dumps({**GOOD, "attention": [{**GOOD["attention"][0], "head_size": 1.5}]}).encode(),
    ],
)
def test_damaged_layers_are_one_line(tmp_path: Path, content: bytes) -> None:
    plan, sidecar = plan_with(tmp_path, content)
    with pytest.raises(EngineError, match=r"^[^\n]*unet\.layers\.json is damaged: [^\n]+$"):
        read_layers(plan, sidecar)
    assert "unet.layers.json is damaged" in layer_report(entry(plan))["not_listed"]


def test_altered_missing_and_absent_layers_are_named(tmp_path: Path) -> None:
    plan, sidecar = plan_with(tmp_path, stored(FUSED))
    content = layers_path(plan).read_bytes()
    layers_path(plan).write_bytes(content.replace(b"Half", b"Int8"))
    with pytest.raises(EngineError, match=r"layers\.json was damaged or altered"):
        read_layers(plan, sidecar)
    layers_path(plan).unlink()
    assert "layers.json is missing" in layer_report(entry(plan))["not_listed"]
    plan, sidecar = plan_with(tmp_path, None)
    assert read_layers(plan, sidecar) is None
    assert layer_report(entry(plan)) == {"not_listed": NOT_LISTED}
    plan.unlink()
    assert "no engine" in layer_report(entry(plan))["not_listed"]
    prepared = {**entry(plan), "backend": "onnxruntime"}
    assert "only the engines of TensorRT" in layer_report(prepared)["not_listed"]


def test_layers_of_endless_length_are_not_read(tmp_path: Path) -> None:
    plan, sidecar = plan_with(tmp_path, b"{}")
    with layers_path(plan).open("wb") as file:
        file.truncate(LAYERS_LIMIT + 1)
    with pytest.raises(EngineError, match="at most"):
        read_layers(plan, sidecar)


PROFILE: Profile = {"batch": Span(1, 2, 4), "sequence": Span(77, 77, 77)}
STATIC: Profile = {"batch": Span(2, 2, 2), "sequence": Span(77, 77, 77)}


@pytest.mark.parametrize("half", [True, False])
def test_build_lists_the_layers_of_each_profile(
    package: Path, half_package: Path, tmp_path: Path, half: bool
) -> None:
    """Real builds: in fp16 each attention of the text encoder is one kernel, in fp32 none is."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    pytest.importorskip("polygraphy")
    model = (half_package if half else package) / "text_encoder" / "model.onnx"
    plan = tmp_path / "text_encoder.plan"
    build_plan(model, plan, backend="tensorrt-rtx", profiles=[STATIC, PROFILE])
    report = layer_report(entry(plan))
    assert len(report["profiles"]) == 2
    for profile in report["profiles"]:
        assert profile["attention"] == {"total": 2, "fused": 2 if half else 0}
        assert profile["kinds"]["matrix product"] >= 8 and profile["kinds"]["normalisation"] >= 4
        assert {each["reason"] for each in profile["separate"]} == (
            set() if half else {"its type is float; fused kernels take fp16 and bf16"}
        )
    assert {layer["profile"] for layer in report["layers"]} == {0, 1}
