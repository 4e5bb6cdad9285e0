"""Precisions of an export: which nodes are converted, which are not, and how close outputs are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from benchmarks.precision import IDENTICAL, psnr
from benchmarks.precision import run as measure
from sdexport import Package, load_pipeline
from sdexport.cli import main
from sdexport.engines import open_session
from sdexport.exporter import export
from sdexport.graphs import half_precision, int8_weights, precision
from sdexport.runtime.models.components import UNET, VAE_DECODER
from sdexport.runtime.models.stable_diffusion import STABLE_DIFFUSION
from sdexport.runtime.models.stable_diffusion_xl import STABLE_DIFFUSION_XL
from sdexport.verification.verifier import verify
from tests.helpers.families import build
from tests.helpers.low_precision import export_from_graphs, typed
from tests.tolerances import (
    ACCURACY_POINTS,
    INT8_IMAGE_PSNR,
    LOWER_COMPONENT_L2,
    LOWER_IMAGE_PSNR,
    LOWER_IMAGE_RMS,
)

LOWER = ("fp16", "bf16", "int8")
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NAMES = {"fp16": "float16", "bf16": "bfloat16"}
RUNS = [
    ("fp16", "onnxruntime"),
    ("fp16", "openvino"),
    ("bf16", "openvino"),
    ("int8", "onnxruntime"),
    ("int8", "openvino"),
]


@pytest.fixture(scope="session")
def low_precision(
    package: Path, checkpoint: Path, half_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Packages of the demo model by precision, from graphs that were traced once."""
    folder = tmp_path_factory.mktemp("low_precision")
    for name in LOWER[1:]:
        export_from_graphs(package, checkpoint, name, folder / name)
    return {name: folder / name for name in LOWER[1:]} | {LOWER[0]: half_package}


def float_types(path: Path) -> dict[str, int]:
    """The type of each node's first output, if that is floating point."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    values = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    values |= {v.name: v.type.tensor_type.elem_type for v in model.graph.output}
    floats = (TensorProto.FLOAT, *TYPES.values())
    found = {node.name: values.get(node.output[0], 0) for node in model.graph.node}
    return {name: kind for name, kind in found.items() if kind in floats}


@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_low_precision_package_reproduces_pytorch(
    low_precision: dict[str, Path], name: str, backend: str
) -> None:
    checks = [c for c in verify(low_precision[name], backend) if c.output != "files"]
    assert all(check.passed for check in checks)
    graphs = Package.load(low_precision[name], verify=False).graphs
    assert {check.name.split(",")[0] for check in checks} == {*graphs, "image"}
    *components, image = checks
    for check in components:
        assert (check.value("relative_l2") or 0) <= LOWER_COMPONENT_L2[name], check
    assert 0 < (image.value("image_rms") or 0) <= LOWER_IMAGE_RMS[name]


@pytest.mark.parametrize("name", LOWER)
def test_low_precision_package_has_float32_edges_and_valid_graphs(
    low_precision: dict[str, Path], package: Path, name: str
) -> None:
    whole, low = Package.load(package).manifest, Package.load(low_precision[name]).manifest
    assert low.verified_with == ("openvino" if name == "bf16" else "onnxruntime")
    for component, entry in low.components.items():
        path = low_precision[name] / component / "model.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        graph = onnx.load(path).graph
        kinds = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
        assert kinds <= {TensorProto.FLOAT, TensorProto.INT64}
        assert entry.inputs == whole.components[component].inputs
        assert entry.outputs == whole.components[component].outputs
        assert entry.precision == name
    sizes = [sum(r.size for c in m.components.values() for r in c.files) for m in (low, whole)]
    assert sizes[0] < sizes[1] * (0.3 if name == "int8" else 0.52)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_manifest_counts_the_nodes_of_each_type(low_precision: dict[str, Path], name: str) -> None:
    for component, entry in Package.load(low_precision[name]).manifest.components.items():
        types = float_types(low_precision[name] / component / "model.onnx")
        casts_ = {n for n in types if n.startswith("cast.")}
        lower = [n for n, kind in types.items() if kind == TYPES[name] and n not in casts_]
        assert entry.nodes[NAMES[name]] == len(lower) > 50
        single = [n for n, kind in types.items() if kind == TensorProto.FLOAT and n not in casts_]
        assert set(entry.nodes) <= {NAMES[name], half_precision.TIMESTEP}
        assert entry.nodes.get(half_precision.TIMESTEP, 0) == len(single)
        assert (len(single) > 0) == (component == "unet")


def test_inspect_shows_the_counts(low_precision: dict[str, Path]) -> None:
    text = run("inspect", low_precision["fp16"]).stdout
    nodes = Package.load(low_precision["fp16"]).manifest.components["unet"].nodes
    assert f"  {nodes['float16']} nodes float16\n" in text
    assert f"  {nodes[half_precision.TIMESTEP]} nodes {half_precision.TIMESTEP}\n" in text
    assert "verified   with onnxruntime\n" in text


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_bf16_in_onnx_runtime_fails_in_one_line_with_advice(
    low_precision: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    result = run("generate", low_precision["bf16"], "a red circle", "-o", out)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and not out.exists()
    assert "the package is in bf16: use --backend openvino or tensorrt-rtx" in result.stderr
    again = run(
        "generate",
        low_precision["bf16"],
        "a red circle",
        "-o",
        out,
        "--steps",
        2,
        "--backend",
        "openvino",
    )
    assert again.exit_code == 0 and out.exists(), again.stderr


@pytest.mark.parametrize("name", LOWER)
def test_openvino_runs_low_precision_packages_in_int8(
    low_precision: dict[str, Path], name: str
) -> None:
    openvino = pytest.importorskip("openvino")
    from sdexport.engines.ov.rewrites.int8 import quantize

    for component, expected in (("unet", (29, 35)), ("vae_decoder", (16, 3))):
        model = openvino.Core().read_model(low_precision[name] / component / "model.onnx")
        assert tuple(quantize(model).values()) == expected
    images = []
    for options in ({}, {"precision": "i8"}):
        with load_pipeline(low_precision[name], "openvino", **options) as pipe:  # type: ignore[arg-type]
            result = pipe("a red circle", seed=0, num_inference_steps=8)
        images.append(np.asarray(result.images[0]))
    assert INT8_IMAGE_PSNR <= psnr(*images) < IDENTICAL


@pytest.mark.parametrize("missing", ["openvino", "onnxruntime"])
def test_export_is_verified_with_a_backend_that_runs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda name: None if name == missing else object())
    expected = {
        "openvino": ["onnxruntime", "onnxruntime", None, "onnxruntime"],
        "onnxruntime": ["openvino", "openvino", "openvino", "openvino"],
    }[missing]
    names = ("fp32", "fp16", "bf16", "int8")
    assert [precision.verifying_backend(name) for name in names] == expected


def test_export_rejects_precisions_it_cannot_write(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'half'; choose one of fp32, fp16, bf16, int8"):
        export(checkpoint, tmp_path / "package", precision="half")
    with pytest.raises(ValueError, match=r"bf16 needs opset 22 or later, .* got opset 21"):
        export(checkpoint, tmp_path / "package", precision="bf16", opset=21)
    assert list(tmp_path.iterdir()) == []


def test_sdxl_vae_stays_float32_in_fp16_only() -> None:
    family, config = STABLE_DIFFUSION_XL, SimpleNamespace()
    for name, component, expected in (
        ("fp16", VAE_DECODER, "fp32"),
        ("fp16", UNET, "fp16"),
        ("bf16", VAE_DECODER, "bf16"),
        ("int8", VAE_DECODER, "int8"),
    ):
        assert precision.conversion(name, component, family, config).precision == expected
    half = precision.conversion("fp16", VAE_DECODER, STABLE_DIFFUSION, config)
    assert half.precision == "fp16"
    model = chain([helper.make_node("Relu", ["x"], ["y"], name="relu")])
    change = precision.conversion("fp16", VAE_DECODER, family, config)
    change(model)
    assert change.nodes == {precision.XL_VAE: 1}
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


def chain(nodes: list[Any], *weights: np.ndarray, **inputs: str) -> ir.Model:
    """A graph from x (2, 8) to y with weights w0, w1..."""
    kinds = inputs or {"x": "float"}
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT if kind == "float" else TensorProto.INT64, [2, 8]
            )
            for name, kind in kinds.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    opsets = [helper.make_opsetid("", 23)]
    return typed(helper.make_model(graph, opset_imports=opsets, ir_version=10))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Softmax", half_precision.SOFTMAX),
        ("Sqrt", half_precision.STATISTICS),
        ("ReduceMean", half_precision.STATISTICS),
    ],
)
def test_float32_operator_is_between_casts(kind: str, reason: str) -> None:
    model = chain(
        [
            helper.make_node("Relu", ["x"], ["a"], name="before"),
            helper.make_node(kind, ["a"], ["b"], name="float32"),
            helper.make_node("Relu", ["b"], ["y"], name="after"),
        ]
    )
    assert half_precision.lower(model, ir.DataType.FLOAT16) == {"float16": 2, reason: 1}
    kinds = {node.name: node.outputs[0].dtype for node in model.graph}
    assert kinds["float32"] == ir.DataType.FLOAT and kinds["after"] == ir.DataType.FLOAT16
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_weights_beyond_float16_stay_float32_in_fp16_only() -> None:
    def graph() -> ir.Model:
        return chain(
            [helper.make_node("MatMul", ["x", "w0"], ["y"])], np.full((8, 3), 7e4, np.float32)
        )

    assert half_precision.lower(graph(), ir.DataType.FLOAT16) == {half_precision.LARGE: 1}
    assert half_precision.lower(graph(), ir.DataType.BFLOAT16) == {"bfloat16": 1}


@pytest.mark.parametrize("upcast", [False, True])
def test_attention_stays_float32_with_upcast_attention(package: Path, upcast: bool) -> None:
    model = typed(onnx.load(package / "unet" / "model.onnx"))
    nodes = half_precision.lower(model, ir.DataType.FLOAT16, upcast_attention=upcast)
    attention = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attention) == 14 and nodes.get(half_precision.UPCAST, 0) == 14 * upcast
    wanted = ir.DataType.FLOAT if upcast else ir.DataType.FLOAT16
    assert {node.outputs[0].dtype for node in attention} == {wanted}


def quantized(model: ir.Model, tmp_path: Path) -> tuple[dict[str, int], Any]:
    nodes = int8_weights.quantize(model)
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    # without ONNX Runtime's optimisations, which would quantise the other factor as well
    return nodes, open_session(path, optimization="none")


@pytest.mark.parametrize(
    ("kind", "shape", "attributes", "axis"),
    [
        ("MatMul", (8, 40), {}, 1),
        ("Gemm", (40, 8), {"transB": 1}, 0),
        ("Gemm", (8, 40), {}, 1),
    ],
)
def test_int8_rounds_each_channel_by_its_own_scale(
    kind: str, shape: tuple[int, int], attributes: dict[str, int], axis: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    channels = np.moveaxis(weight, axis, 0)  # a view: what follows changes the weight
    channels *= np.logspace(-3, 3, 40, dtype=np.float32)[:, None]
    channels[5] = 0
    model = chain([helper.make_node(kind, ["x", "w0"], ["y"], name="node", **attributes)], weight)
    nodes, session = quantized(model, tmp_path)
    assert nodes == {int8_weights.WEIGHTS: 1}
    assert {v.dtype for v in model.graph.initializers.values()} == {
        ir.DataType.INT8,
        ir.DataType.FLOAT,
    }
    x = np.eye(8, dtype=np.float32)
    rows = [session.run({"x": x[i : i + 2]})["y"] for i in range(0, 8, 2)]
    error = np.abs(np.concatenate(rows) - (channels.T)).max(axis=0)
    half_a_step = np.abs(channels).max(axis=1) / 127 / 2
    assert (error <= half_a_step * 1.00001).all() and error[5] == 0


def test_int8_embeddings_are_float16(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["w0", "x"], ["a"], name="first"),
        helper.make_node("Gather", ["w0", "x"], ["b"], name="second"),
        helper.make_node("Add", ["a", "b"], ["y"], name="add"),
    ]
    model = chain(nodes, table, x="int")
    counts, session = quantized(model, tmp_path)
    assert counts == {int8_weights.TABLE: 2}
    assert [v.dtype for v in model.graph.initializers.values()] == [ir.DataType.FLOAT16]
    ids = np.arange(16).reshape(2, 8) * 3
    np.testing.assert_array_equal(
        session.run({"x": ids})["y"], 2 * table[ids].astype(np.float16).astype(np.float32)
    )


def test_int8_keeps_the_first_and_last_layers_of_the_unet(low_precision: dict[str, Path]) -> None:
    nodes = Package.load(low_precision["int8"]).manifest.components["unet"].nodes
    assert nodes[int8_weights.EDGE] == 2 and nodes[int8_weights.TIMESTEP] == 2
    assert nodes[int8_weights.WEIGHTS] > 100 and len(nodes) == 3
    graph = onnx.load(low_precision["int8"] / "unet" / "model.onnx").graph
    kept = [i.name for i in graph.initializer if i.data_type == 1 and np.prod(i.dims) > 999]
    assert sorted(name.removeprefix("model.") for name in kept) == [
        "conv_in.weight",
        "conv_out.weight",
        "time_embedding.linear_1.weight",
        "time_embedding.linear_2.weight",
    ]


def network(path: Path) -> tuple[Any, Any, Any]:
    trt = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    found = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(found, logger)
    assert parser.parse_from_file(str(path)), [str(parser.get_error(i)) for i in range(1)]
    return builder, parser, found


def layers_by_type(path: Path) -> dict[str, list[str]]:
    """TensorRT-RTX's layers, by the type of their first output, without constants."""
    objects = network(path)  # all three must stay alive
    found: dict[str, list[str]] = {}
    for index in range(objects[2].num_layers):
        layer = objects[2].get_layer(index)
        if layer.type.name != "CONSTANT":
            found.setdefault(layer.get_output(0).dtype.name, []).append(layer.name)
    return found


def assert_only_listed_nodes_are_float32(folder: Path, name: str) -> None:
    """In TensorRT-RTX every float32 layer is a node that the export kept in float32, or a cast."""
    for component, entry in Package.load(folder).manifest.components.items():
        path = folder / component / "model.onnx"
        layers = layers_by_type(path)
        if entry.precision == "fp32":
            assert precision.XL_VAE in entry.nodes and "HALF" not in layers
            continue
        single = {n for n, kind in float_types(path).items() if kind == TensorProto.FLOAT}
        assert set(layers["FLOAT"]) <= single, component
        kind = {"fp16": "HALF", "bf16": "BF16"}[name]
        assert len(layers[kind]) >= entry.nodes[NAMES[name]], "nodes may be several layers"
        listed = [n for n in layers["FLOAT"] if not n.startswith("cast.")]
        assert len(listed) <= sum(n for reason, n in entry.nodes.items() if "float32" in reason)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_tensorrt_rtx_keeps_the_types_of_the_graph(
    low_precision: dict[str, Path], name: str
) -> None:
    assert_only_listed_nodes_are_float32(low_precision[name], name)


@pytest.mark.parametrize("name", LOWER)
def test_tensorrt_rtx_builds_low_precision_graphs(
    low_precision: dict[str, Path], name: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    arguments = ("--backend", "tensorrt-rtx", "--engine-dir", tmp_path)
    result = run("build", low_precision[name], *arguments)
    assert result.exit_code == 0, result.stderr
    assert len(list(tmp_path.rglob("*.plan"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", LOWER)
def test_small_sdxl_converts_verifies_and_builds(name: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    manifest = export(build("sdxl", tmp_path / "sdxl"), package, precision=name)
    assert manifest.components["unet"].precision == name
    vae = "fp32" if name == "fp16" else name
    assert manifest.components["vae_decoder"].precision == vae
    if name in NAMES:
        assert_only_listed_nodes_are_float32(package, name)
    arguments = ("--backend", "tensorrt-rtx", "--engine-dir", tmp_path / "engines")
    result = run("build", package, *arguments)
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
def test_attributes_are_recognised_as_in_float32(
    low_precision: dict[str, Path], package: Path, tmp_path: Path
) -> None:
    for name, folder in {"fp32": package, **low_precision}.items():
        (tmp_path / name).symlink_to(folder, target_is_directory=True)
    figures = measure(tmp_path, schedulers=("ddim",))
    packages, arithmetic = figures["precisions"], figures["arithmetic"]
    single = packages["fp32"]["ddim"]
    bounds = {name: (packages[name], LOWER_IMAGE_PSNR[name]) for name in LOWER}
    bounds |= {f"{name}, computed": (arithmetic[name], INT8_IMAGE_PSNR) for name in arithmetic}
    for name, (rows, decibels) in bounds.items():
        found = rows["ddim"]
        for attribute in ("colour", "background", "shape", "size", "all"):
            assert abs(found[attribute] - single[attribute]) <= ACCURACY_POINTS, (name, attribute)
        assert found["psnr_median"] >= decibels, name
