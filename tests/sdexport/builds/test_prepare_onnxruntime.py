"""Graphs prepared for ONNX Runtime: what is rewritten, what is written, and mistakes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from sdexport import Package, Pipeline, load_pipeline
from sdexport.builds import prepare_onnxruntime as module
from sdexport.builds.prepare_onnxruntime import prepare_graph
from sdexport.cli import main
from sdexport.engines import EngineError, open_session
from sdexport.engines.cache.sidecar import StoredFile, with_own_digest
from sdexport.engines.ort.prepared import prepared_session
from sdexport.engines.ort.prepared.prepared_graph import is_aligned
from sdexport.engines.worker_process import Worker
from sdexport.graphs.cpu import winograd_onnx
from sdexport.graphs.cpu.cpu_rewrites import CpuGraph
from sdexport.runtime import component_sessions
from sdexport.runtime.component_engines import open_component
from tests.helpers.changed_package import accept_files, edit_manifest
from tests.tolerances import (
    COMPONENT_REL,
    IMAGE_ABS,
    PREPARED_HALF_IMAGE_ABS,
    WINOGRAD_REL,
    assert_close,
)

pytest.importorskip("onnxruntime")
PROMPT = "a red circle on a blue background"
FILE = {"size": 1, "sha256": "0" * 64}


@pytest.fixture(scope="module")
def engines(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All components of the embedded model, prepared by the command."""
    folder = tmp_path_factory.mktemp("prepared")
    result = build(package, folder, "--json")
    assert result.exit_code == 0, result.stderr
    assert all(entry["built"] for entry in json.loads(result.stdout)["engines"])
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def build(package: Path, folder: Path, *arguments: object) -> Result:
    return run("build", package, "--backend", "onnxruntime", "--engine-dir", folder, *arguments)


def generate(pipe: Pipeline, **arguments: Any) -> np.ndarray:
    given = {"num_inference_steps": 3, "guidance_scale": 7.5, "seed": 3} | arguments
    return np.asarray(pipe(PROMPT, **given).images[0]).astype(int)


def test_graph_of_the_unet_is_rewritten(package: Path) -> None:
    path = package / "unet" / "model.onnx"
    before, graph = onnx.load(path, load_external_data=False).graph, CpuGraph(path)
    norms = sum(node.op_type == "GroupNormalization" for node in before.node)
    resizes = sum(node.op_type == "Resize" for node in before.node)
    assert norms and resizes and graph.multiple() == 2**resizes
    expected = {"group normalisations": norms, "upsamplings": resizes, "winograd": 0}
    assert graph.rewrite() == expected
    left = {node.op_type for node in graph.model.graph}
    assert not left & {"GroupNormalization", "Resize"}
    inputs = {value.name for value in graph.model.graph.inputs}
    assert inputs == {"sample", "timestep", "encoder_hidden_states"}


def test_graph_without_computed_sizes_takes_images_of_any_size(package: Path) -> None:
    assert CpuGraph(package / "vae_decoder" / "model.onnx").multiple() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "linear"},
        {"coordinate_transformation_mode": "half_pixel"},
        {"scales": [1.0, 1.0, 2.0, 3.0]},
        {"pads": [0, 0, 0, 0]},
        {"kernel": 1, "pads": [0, 0, 0, 0]},
        {"strides": [2, 2]},
        {"group": 2},
        {"other_user": True},
        {"is_output": True},
    ],
    ids=str,
)
def test_graph_keeps_other_resizes(tmp_path: Path, change: dict[str, Any]) -> None:
    assert _upsampling(tmp_path / "same.onnx", {}).rewrite()["upsamplings"] == 1
    assert _upsampling(tmp_path / "other.onnx", change).rewrite()["upsamplings"] == 0


def _upsampling(path: Path, change: dict[str, Any]) -> CpuGraph:
    """A graph of an upsampling by 2 and a convolution."""
    side, group = change.get("kernel", 3), change.get("group", 1)
    modes = {
        "mode": change.get("mode", "nearest"),
        "coordinate_transformation_mode": change.get(
            "coordinate_transformation_mode", "asymmetric"
        ),
        "nearest_mode": "floor",
    }
    tensors = [
        numpy_helper.from_array(
            np.array(change.get("scales", [1.0, 1.0, 2.0, 2.0]), np.float32), "scales"
        ),
        numpy_helper.from_array(np.ones((4, 4 // group, side, side), np.float32), "weight"),
    ]
    nodes = [
        helper.make_node("Resize", ["image", "", "scales"], ["upsampled"], **modes),
        helper.make_node(
            "Conv",
            ["upsampled", "weight"],
            ["result"],
            pads=change.get("pads", [1, 1, 1, 1]),
            strides=change.get("strides", [1, 1]),
            group=group,
        ),
    ]
    outputs = ["result"]
    if change.get("other_user"):
        nodes.append(helper.make_node("Relu", ["upsampled"], ["more"]))
        outputs.append("more")
    if change.get("is_output"):
        outputs.append("upsampled")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, "h", "w"])
    graph = helper.make_graph(nodes, "g", [image], values, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return CpuGraph(path)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_step", [1, 5, 512])
def test_winograd_convolutions_have_the_same_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bias: bool, per_step: int
) -> None:
    monkeypatch.setattr(winograd_onnx, "_TILES_PER_STEP", per_step)
    graph = _convolutions(tmp_path / "own.onnx", channels=(256, 320, 256), bias=bias)
    assert graph.rewrite()["winograd"] == 2
    kinds = [node.op_type for node in graph.model.graph]
    assert kinds.count("Scan") == 2 and "Conv" not in kinds
    assert kinds.count("Range") == 3  # both images have one size: indices are computed once
    _check_outputs(graph, tmp_path)


@pytest.mark.parametrize("per_step", [2, 512])
def test_winograd_after_upsampling_has_the_same_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_step: int
) -> None:
    monkeypatch.setattr(winograd_onnx, "_TILES_PER_STEP", per_step)
    graph = _convolutions(tmp_path / "own.onnx", channels=(256, 320, 256), doubled=True)
    counts = graph.rewrite()
    assert (counts["winograd"], counts["upsamplings"]) == (2, 2)
    assert not {node.op_type for node in graph.model.graph} & {"Conv", "Resize"}
    _check_outputs(graph, tmp_path)


def _check_outputs(graph: CpuGraph, tmp_path: Path) -> None:
    ir.save(graph.model, tmp_path / "tiles.onnx")
    rng = np.random.default_rng(0)
    with open_session(tmp_path / "own.onnx") as own, open_session(tmp_path / "tiles.onnx") as ours:
        for shape in ((1, 1, 1), (2, 4, 4), (1, 5, 3), (3, 8, 12), (2, 17, 2)):
            image = 3 + rng.standard_normal((shape[0], 256, *shape[1:]), np.float32)
            expected, found = (s.run({"image": image})["result"] for s in (own, ours))
            assert_close(found, expected, rel=WINOGRAD_REL)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": (256, 255)},
        {"channels": (255, 256)},
        {"channels": (641, 480)},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"pads": [0, 0, 0, 0]},
        {"dtype": np.float16},
        {"auto_pad": "SAME_UPPER"},
    ],
    ids=str,
)
def test_convolutions_that_winograd_does_not_suit_are_kept(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    graph = _convolutions(tmp_path / "own.onnx", **{"channels": (640, 480)} | change)
    assert graph.rewrite()["winograd"] == 0


def test_convolution_with_a_computed_bias_is_kept(tmp_path: Path) -> None:
    graph = _convolutions(tmp_path / "own.onnx", channels=(256, 256), computed=True)
    assert graph.rewrite()["winograd"] == 0


def _convolutions(
    path: Path,
    channels: tuple[int, ...],
    *,
    bias: bool = True,
    doubled: bool = False,
    computed: bool = False,
    dtype: Any = np.float32,
    **attributes: Any,
) -> CpuGraph:
    """A graph of consecutive 3x3 convolutions, for images of any size."""
    rng, last = np.random.default_rng(1), len(channels) - 1
    names = ["image", *(f"image{i}" for i in range(1, last)), "result"]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes: list[Any] = []
    tensors = [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice")]
    for i in range(last):
        width, result_width = channels[i : i + 2]
        weights = rng.standard_normal((result_width, width, 3, 3)) / np.sqrt(9 * width)
        tensors.append(numpy_helper.from_array(weights.astype(dtype), f"weight{i}"))
        inputs = [names[i], f"weight{i}"]
        if doubled:
            modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            inputs[0] = f"doubled{i}"
            nodes.append(helper.make_node("Resize", [names[i], "", "twice"], [inputs[0]], **modes))
        if bias:
            values = rng.standard_normal(result_width).astype(dtype)
            tensors.append(numpy_helper.from_array(values, f"bias{i}"))
            if computed:
                nodes.append(helper.make_node("Neg", [f"bias{i}"], [f"negative{i}"]))
            inputs.append(f"negative{i}" if computed else f"bias{i}")
        settings = {"pads": [1, 1, 1, 1]} | attributes
        if "auto_pad" in settings:
            del settings["pads"]
        nodes.append(helper.make_node("Conv", inputs, [names[i + 1]], **settings))
    sides = [None, None] if doubled else ["h", "w"]
    values = [
        helper.make_tensor_value_info(name, kind, ["n", count, *sides])
        for name, count in zip(names, channels, strict=True)
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[-1:], tensors, value_info=values[1:-1])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return CpuGraph(path)


def test_build_keeps_what_is_there_and_leaves_nothing_else(package: Path, engines: Path) -> None:
    again = build(package, engines)
    assert again.exit_code == 0 and again.stdout.count("kept") == 4
    names = {path.name for path in (engines / "onnxruntime").iterdir()}
    assert {name for name in names if name.startswith("unet")} == {
        "unet.onnx",
        "unet.onnx_data",
        "unet.json",
    }
    assert not [name for name in names if "part" in name or "lock" in name]


def test_prepared_graphs_answer_as_pytorch_did(package: Path, engines: Path) -> None:
    result = run("verify", package, "--backend", "onnxruntime", "--engine-dir", engines)
    assert result.exit_code == 0, result.stdout + result.stderr


@pytest.mark.parametrize("size", [(64, 64), (72, 40)])  # the second by the package's own graphs
@pytest.mark.parametrize("low_memory", [False, True])
def test_prepared_graphs_generate_the_same_image(
    package: Path, engines: Path, pipe: Pipeline, size: tuple[int, int], low_memory: bool
) -> None:
    sizes = {"height": size[0], "width": size[1]}
    expected = generate(pipe, **sizes)
    given = {"verify": False, "engine_dir": engines, "low_memory": low_memory}
    with load_pipeline(package, **given) as prepared:
        first, second = generate(prepared, **sizes), generate(prepared, **sizes)
        other = generate(prepared, **sizes, negative_prompt="a green square")
    assert np.abs(first - expected).max() <= IMAGE_ABS and np.array_equal(first, second)
    assert not np.array_equal(other, first)


def test_prepared_sessions_stay_open_in_low_memory(
    package: Path, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("memory of mapped files is given back on Linux alone")
    opened: list[int | None] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        session = open_component(*arguments, **options)
        opened.append(session.mapped)
        return session

    monkeypatch.setattr(component_sessions, "open_component", watched)
    loaded = Package.load(package, verify=False)
    with Pipeline(loaded, engine_dir=engines, low_memory=True) as pipe:
        generate(pipe)
        generate(pipe, seed=4)
    assert len(opened) == 3 and all(opened)


def test_prepared_graph_in_half_precision(half_package: Path, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    result = build(half_package, engines)
    assert result.exit_code == 0, result.stderr
    with (
        load_pipeline(half_package) as plain,
        load_pipeline(half_package, engine_dir=engines) as ours,
    ):
        assert ours.session("unet").mapped
        assert np.abs(generate(ours) - generate(plain)).max() <= PREPARED_HALF_IMAGE_ABS


def test_inspect_lists_prepared_graphs(package: Path, engines: Path) -> None:
    shown = run("inspect", package, "--engine-dir", engines).stdout
    assert shown.count(": onnxruntime ") == 4 and shown.count("\n  fresh\n") == 4
    assert "options: multiples sample 4, passes 3\n" in shown


def test_build_refuses_options_of_tensorrt(package: Path, tmp_path: Path) -> None:
    result = build(package, tmp_path, "--height", "64")
    assert result.exit_code == 2 and "--height is for TensorRT" in result.stderr


@pytest.mark.parametrize("name", ["vae_decoder.onnx", "vae_decoder.onnx_data"])
def test_prepared_graph_with_a_flipped_byte_is_not_used(
    package: Path, engines: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = tmp_path / "onnxruntime"
    shutil.copytree(engines / "onnxruntime", folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    loaded = Package.load(package, verify=False)
    with open_component(loaded, "vae_decoder", engine_dir=tmp_path) as session:
        assert session.mapped is None
    (message,) = caplog.messages
    assert f"{folder / name} was damaged or altered" in message
    assert message.endswith("--component vae_decoder --rebuild-stale")
    result = build(package, tmp_path, "--component", "vae_decoder")
    assert result.exit_code == 1 and "was damaged or altered" in result.stderr
    result = build(package, tmp_path, "--component", "vae_decoder", "--rebuild-stale")
    assert result.exit_code == 0, result.stderr
    with open_component(loaded, "vae_decoder", engine_dir=tmp_path) as session:
        assert session.mapped == (folder / "vae_decoder.onnx_data").stat().st_size


def test_prepared_graph_that_is_replaced_while_it_is_opened_is_not_used(
    package: Path,
    engines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "onnxruntime"
    shutil.copytree(engines / "onnxruntime", folder)
    load = prepared_session.load

    def replace_and_load(name: str, path: Path, *arguments: Any) -> Any:
        shutil.copy(folder / "unet.onnx_data", tmp_path / "copy")
        os.replace(tmp_path / "copy", folder / "unet.onnx_data")
        return load(name, path, *arguments)

    monkeypatch.setattr(prepared_session, "load", replace_and_load)
    loaded = Package.load(package, verify=False)
    with open_component(loaded, "unet", engine_dir=tmp_path) as session:
        assert session.mapped is None
    assert "unet.onnx_data" in caplog.text and "changed on disk" in caplog.text


def test_prepared_graph_of_another_package_with_the_same_graph_is_not_used(
    package_copy: Path, engines: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = package_copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text() + "\n")
    accept_files(package_copy)
    loaded = Package.load(package_copy)
    with open_component(loaded, "vae_decoder", engine_dir=engines) as session:
        assert session.mapped is None
    assert re.search(r"built for the package \w{12} with the same ONNX file", caplog.text)


def test_prepared_graph_fits_another_export_of_the_same_files(
    package_copy: Path, engines: Path
) -> None:
    """What exported them, with which figures and reference outputs, does not matter."""
    path = package_copy / "reference" / "image.npz"
    before = path.read_bytes()
    with np.load(path) as arrays:
        np.savez(path, **dict(arrays))
    assert path.read_bytes() != before
    accept_files(package_copy, "reference/image.npz")
    edit_manifest(package_copy, lambda manifest: manifest["tools"].update(torch="another"))
    loaded = Package.load(package_copy)
    with open_component(loaded, "vae_decoder", engine_dir=engines) as session:
        assert session.mapped


def test_build_of_another_graph_needs_leave(package: Path, tmp_path: Path) -> None:
    plan = tmp_path / "vae_decoder.onnx"
    model = package / "vae_decoder" / "model.onnx"
    assert prepare_graph(model, plan, component="vae_decoder").built
    with pytest.raises(
        EngineError, match="it was built from another ONNX file; --rebuild-stale replaces"
    ):
        prepare_graph(model, plan, component="vae_decoder", digest="0" * 64)
    replaced = prepare_graph(
        model, plan, component="vae_decoder", digest="0" * 64, rebuild_stale=True
    )
    assert replaced.built and len(replaced.sidecar.files) == 2


def test_build_from_weights_outside_of_the_graph(package: Path, tmp_path: Path) -> None:
    name, folder = "vae_decoder", tmp_path / "vae_decoder"
    folder.mkdir()
    onnx.save(
        onnx.load(package / name / "model.onnx"),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
    )
    plan, data = tmp_path / "plans" / f"{name}.onnx", folder / "model.onnx_data"
    prepare_graph(folder / "model.onnx", plan, component=name)
    feeds = {"latent_sample": np.random.default_rng(0).standard_normal((1, 4, 9, 7), np.float32)}
    with (
        open_session(folder / "model.onnx", plan=plan) as ours,
        open_session(package / name / "model.onnx") as own,
    ):
        assert ours.mapped
        expected = own.run(feeds)["sample"]
        assert_close(ours.run(feeds)["sample"], expected, rel=COMPONENT_REL)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    other = tmp_path / "others" / f"{name}.onnx"
    with pytest.raises(EngineError, match=f"{name}: ONNX Runtime cannot prepare it: ") as caught:
        prepare_graph(folder / "model.onnx", other, component=name)
    assert "\n" not in str(caught.value) and not list(other.parent.iterdir())


def test_build_that_is_interrupted_leaves_nothing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Worker, do: str, **arguments: Any) -> Any:
        Path(arguments["plan"]).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "request", interrupted)
    model = package / "vae_decoder" / "model.onnx"
    with pytest.raises(KeyboardInterrupt):
        prepare_graph(model, tmp_path / "vae_decoder.onnx", component="vae_decoder")
    assert not list(tmp_path.iterdir())


def test_build_after_a_killed_one_clears_up(package: Path, tmp_path: Path) -> None:
    abandoned = tmp_path / ".vae_decoder.x.part"
    abandoned.mkdir()
    (abandoned / "vae_decoder.onnx_data").write_bytes(b"gigabytes")
    prepare_graph(
        package / "vae_decoder" / "model.onnx",
        tmp_path / "vae_decoder.onnx",
        component="vae_decoder",
    )
    assert not abandoned.exists()


def test_build_without_onnx_names_the_command(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    monkeypatch.delitem(sys.modules, "sdexport.graphs.cpu.cpu_rewrites")
    result = build(package, tmp_path)
    assert result.exit_code == 1 and "pip install 'sdexport[cpu,onnx]'" in result.stderr


def _plan(engines: Path, folder: Path, component: str = "vae_decoder") -> Path:
    """A copy of a prepared graph with what belongs to it."""
    folder.mkdir(exist_ok=True)
    for path in (engines / "onnxruntime").glob(f"{component}.*"):
        shutil.copy(path, folder / path.name)
    return folder / f"{component}.onnx"


def _edit(plan: Path, **changes: Any) -> None:
    path = plan.with_suffix(".json")
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["sidecar_sha256"]
    path.write_text(with_own_digest(data | changes), encoding="utf-8")


def _cut(plan: Path) -> None:
    data = plan.with_name(f"{plan.name}_data")
    data.write_bytes(data.read_bytes()[:-1])


def _garbage(plan: Path) -> None:
    plan.write_bytes(b"\0" * plan.stat().st_size)
    files = [plan, plan.with_name(f"{plan.name}_data")]
    _edit(plan, files={path.name: asdict(StoredFile.of(path)) for path in files})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda plan: _edit(plan, library_version="0.1"), "was built with ONNX Runtime 0.1, here"),
        (lambda plan: _edit(plan, onnx_sha256="0"), "it was built from another ONNX file"),
        (lambda plan: _edit(plan, target={"machine": "abacus"}), "another kind of processor"),
        (lambda plan: _edit(plan, backend="openvino"), "it was built for openvino"),
        (lambda plan: _edit(plan, files={"../../etc/passwd": FILE}), "is not the name of a file"),
        (lambda plan: _edit(plan, files={"": FILE}), "is not the name of a file"),
        (
            lambda plan: _edit(plan, files={"unet.onnx": FILE}),
            "is not the name of a file of vae_decoder",
        ),
        (lambda plan: _edit(plan, files=3), "is damaged"),
        (_cut, "vae_decoder.onnx_data is truncated or altered"),
        (_garbage, "ONNX Runtime cannot load vae_decoder.onnx"),
        (lambda plan: plan.with_suffix(".json").unlink(), "no sidecar"),
        (
            lambda plan: _edit(plan, options={"passes": 3, "multiples": {"brain": 2}}),
            "names an unknown input",
        ),
        (
            lambda plan: _edit(plan, options={"passes": 3, "multiples": {"latent_sample": "x"}}),
            "must be positive integers",
        ),
        (lambda plan: _edit(plan, options={"passes": 2}), "by version 2 of the rewrites, not 3"),
        (lambda plan: _edit(plan, options={}), "by version None of the rewrites, not 3"),
        (lambda plan: _edit(plan, inputs=[]), "does not match its sidecar"),
    ],
    ids=range(16),
)
def test_prepared_graph_that_does_not_fit_is_not_used(
    package: Path,
    engines: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Any,
    message: str,
) -> None:
    plan = _plan(engines, tmp_path / "plan")
    harm(plan)
    model = package / "vae_decoder" / "model.onnx"
    digest = Package.load(package, verify=False).model_digest("vae_decoder")
    with open_session(model, "onnxruntime", plan=plan, digest=digest) as session:
        assert session.mapped is None
    assert message in caplog.text and "--component vae_decoder --rebuild-stale" in caplog.text


def test_image_says_which_prepared_graphs_ran_for_it(
    package: Path, engines: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def engines_of(image: Any, **arguments: Any) -> tuple[str, ...]:
        call = {"prompt": PROMPT, "num_inference_steps": 1, "seed": 1, **arguments}
        return image(**call).parameters[0].engines

    folder = tmp_path / "onnxruntime"
    shutil.copytree(engines / "onnxruntime", folder)
    all_but_encoder = ("text_encoder", "unet", "vae_decoder")
    with load_pipeline(package, engine_dir=tmp_path) as pipe:
        for _ in range(2):  # the second takes the text encoder's outputs from the cache
            assert engines_of(pipe) == all_but_encoder
        assert engines_of(pipe, output_type="latent") == ("text_encoder", "unet")
    _edit(folder / "unet.onnx", onnx_sha256="0" * 64)
    for low_memory in (False, True):
        with load_pipeline(package, engine_dir=tmp_path, low_memory=low_memory) as pipe:
            result = pipe(PROMPT, num_inference_steps=1, seed=1)
            assert result.parameters[0].engines == ("text_encoder", "vae_decoder")
    with load_pipeline(package, engine_dir=engines) as pipe:
        caplog.clear()
        pipe.like(result.parameters[0])
    (message,) = [text for text in caplog.messages if "may differ" in text]
    assert "built engines of text_encoder vae_decoder ran then, of text_encoder unet" in message


@pytest.mark.parametrize(
    "options", [{"optimization": "basic"}, {"prepacking": False}, {"providers": []}], ids=str
)
def test_prepared_graph_gives_way_to_options(
    package: Path, engines: Path, options: dict[str, Any]
) -> None:
    model, plan = package / "vae_decoder" / "model.onnx", _plan(engines, engines / "copy")
    with open_session(model, "onnxruntime", plan=plan, threads=1) as session:
        assert session.mapped
    with open_session(model, "onnxruntime", plan=plan, **options) as session:
        assert session.mapped is None


def test_prepared_session_trims_and_goes_on(package: Path, engines: Path) -> None:
    loaded = Package.load(package, verify=False)
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.standard_normal((2, 4, 16, 16), dtype=np.float32),
        "timestep": np.array([500], np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 77, 96), dtype=np.float32),
    }
    with (
        open_component(loaded, "unet", engine_dir=engines) as session,
        open_component(loaded, "unet") as own,
    ):
        assert (session.mapped or 0) > 20e6
        for text in (feeds["encoder_hidden_states"], feeds["encoder_hidden_states"][::-1].copy()):
            given = feeds | {"encoder_hidden_states": text}
            first = session.run(given)
            assert session.trim(1000) is session.trim() is (sys.platform == "linux")
            assert np.array_equal(session.run(given)["out_sample"], first["out_sample"])
            assert_close(first["out_sample"], own.run(given)["out_sample"], rel=COMPONENT_REL)
    with pytest.raises(EngineError, match="closed"):
        session.run(feeds)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_read_only_folder_is_one_line(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    result = build(package, tmp_path)
    assert result.exit_code == 1 and "--engine-dir puts engines elsewhere" in result.stderr
    assert result.stderr.count("\n") == 1 and not list((tmp_path / "onnxruntime").iterdir())


def test_worker_reports_what_onnx_runtime_says(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No such file"):
        module.write(str(tmp_path / "missing.onnx"), str(tmp_path / "out.onnx"))


def test_weights_of_odd_sizes_are_no_segmentation_fault(tmp_path: Path) -> None:
    """A product with 24x17 weights, whose copy for the kernel begins at an odd place."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((24, 17)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 17])],
        [numpy_helper.from_array(weights, "w")],
    )
    path, plan = tmp_path / "odd" / "model.onnx", tmp_path / "engines" / "odd.onnx"
    path.parent.mkdir()
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    prepare_graph(path, plan, component="odd")
    assert not is_aligned(plan)
    code = (
        "import numpy as np; from sdexport import open_session\n"
        f"with open_session({str(path)!r}, plan={str(plan)!r}) as session:\n"
        "    x = np.ones((3, 24), np.float32); print(session.run({'x': x})['y'][2].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert_close(np.array(json.loads(done.stdout)), weights.sum(0), rel=COMPONENT_REL)
