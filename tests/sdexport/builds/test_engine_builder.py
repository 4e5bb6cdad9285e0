"""sdexport build: sizes in images and pixels, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import sdexport
from sdexport import Package
from sdexport.builds.engine_builder import EngineSizes, profiles
from sdexport.cli import main
from sdexport.engines import cuda_device
from sdexport.engines.cache.profiles import Span, show
from sdexport.engines.trt.engine_layers import layers_path
from tests.helpers import families


@pytest.fixture(scope="module")
def loaded(package: Path) -> Package:
    return Package.load(package, verify=False)


def test_profiles_double_the_batch_for_guidance(loaded: Package) -> None:
    sizes = EngineSizes(Span(1, 2, 4), Span(64, 128, 256), Span(128, 128, 128))
    (unet,) = profiles(loaded, "unet", sizes)
    assert unet == {
        "batch": Span(1, 4, 8),
        "height": Span(8, 16, 32),
        "width": Span(16, 16, 16),
        "sequence": Span(77, 77, 231),
    }
    (decoder,) = profiles(loaded, "vae_decoder", sizes)
    assert decoder["batch"] == Span(1, 2, 4) and decoder["height"] == Span(8, 16, 32)
    (encoder,) = profiles(loaded, "vae_encoder", sizes)
    assert encoder["image_height"] == Span(64, 128, 256)
    (text,) = profiles(loaded, "text_encoder", sizes)
    assert text == {"batch": Span(1, 1, 4 * 2 * 3), "sequence": Span(77, 77, 77)}


def test_profiles_without_guidance_and_with_a_static_one(loaded: Package) -> None:
    sizes = EngineSizes(Span(1, 2, 4), guidance=False, static=True)
    fixed, dynamic = profiles(loaded, "unet", sizes)
    assert dynamic["batch"] == Span(1, 2, 4)
    assert fixed == {name: Span(s.opt, s.opt, s.opt) for name, s in dynamic.items()}
    height, _ = loaded.manifest.default_size
    assert fixed["height"].opt == height // loaded.manifest.downscale


def test_profiles_of_graphs_that_take_loras(lora_package: Path) -> None:
    """Ranks are those of all LoRAs together, times the places of a kernel."""
    loaded = Package.load(lora_package, verify=False)
    (unet,) = profiles(loaded, "unet.lora", EngineSizes(lora_rank=Span(1, 8, 32)))
    plain = profiles(loaded, "unet", EngineSizes())[0]
    assert unet.items() >= plain.items()
    assert unet["conv_in.rank_3x3"] == Span(9, 72, 288) and unet["conv_in.rank"] == Span(1, 8, 32)
    assert unet["time_embedding.linear_1.rank"] == Span(1, 8, 32)
    assert unet["lora_rows"] == Span(1, 1, 1)
    shown = "*.rank 1:8:32, lora_rows 1:1:1, *.rank_3x3 9:72:288"
    assert show(unet).endswith(shown) and len(show(unet)) < 200


@pytest.mark.parametrize("graph", ["unet.controlnet", "unet.t2i_adapter", "unet.ip_adapter"])
def test_profiles_of_graphs_that_take_other_adapters(
    graph: str, lora_package: Path, image_adapters: Path
) -> None:
    """The levels of the UNet have sizes that follow from the image's."""
    folder = lora_package if graph == "unet.controlnet" else image_adapters / "package"
    loaded = Package.load(folder, verify=False)
    sizes = EngineSizes(height=Span(64, 136, 256), width=Span(64, 64, 72))
    (found,) = profiles(loaded, graph, sizes)
    assert found["height"] == Span(8, 17, 32) and found["width"] == Span(8, 8, 9)
    if graph == "unet.ip_adapter":
        assert found["ip_adapter_groups"].max > 1 and found["ip_adapter_tokens"].max == 257
        assert found["positions_2"] == Span(4 * 4, 9 * 4, 16 * 5)
    else:
        assert found["height_2"] == Span(4, 9, 16) and found["width_2"] == Span(4, 4, 5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (EngineSizes(height=Span(60, 64, 64)), "height 60:64:64: 60 is not a multiple of 8"),
        (EngineSizes(tokens=Span(1, 77, 77)), "tokens 1:77:77: 1 is not a multiple of 77"),
    ],
)
def test_profiles_refuse_sizes(loaded: Package, sizes: EngineSizes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profiles(loaded, "unet", sizes)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def build(package: Path, folder: Path, *arguments: object) -> Result:
    return run("build", package, "--backend", "tensorrt-rtx", "--engine-dir", folder, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--height", "60"], "error: height 60:60:60: 60 is not a multiple of 8", 1),
        (["--batch", "4:2:1"], "4:2:1 is not a span: expected 1 <= MIN <= OPT <= MAX", 2),
        (["--batch", "many"], "'many' is not a span: expected MIN:OPT:MAX or one number", 2),
        (["--component", "brain"], "has no brain; it has text_encoder, unet", 1),
        (["--hardware-compatible"], "has no option hardware_compatible", 1),
        (["--optimization-level", "9"], "9 is not in the range", 2),
    ],
)
def test_build_mistakes(
    package: Path, tmp_path: Path, arguments: list[str], message: str, code: int
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    result = build(package, tmp_path / "e", *arguments)
    assert result.exit_code == code and message in result.stderr
    assert code == 2 or result.stderr.count("\n") == 1
    assert not (tmp_path / "e").exists() or not list((tmp_path / "e").rglob("*.plan"))


def test_build_command_builds_keeps_and_replaces(package: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    result = build(package, tmp_path, "--component", "text_encoder", "--json")
    assert result.exit_code == 0, result.stderr
    (entry,) = json.loads(result.stdout)["engines"]
    assert entry["built"] and entry["profiles"] == [{"batch": "1:1:24", "sequence": "77:77:77"}]
    files = Path(entry["plan"]), layers_path(Path(entry["plan"]))
    assert sum(file.stat().st_size for file in files) == entry["size"]
    layers = run("inspect", package, "--engine-dir", tmp_path, "--layers")
    assert layers.exit_code == 0 and "  layers for profile 0: " in layers.stdout, layers.stderr
    assert "attention in one kernel: 0 of 2\n      2 not, from node_" in layers.stdout
    assert "on: its type is float; fused kernels take fp16 and bf16" in layers.stdout
    shown = run("inspect", package, "--engine-dir", tmp_path, "--layers", "--json")
    (engine,) = json.loads(shown.stdout)["engines"]
    assert len(engine["layers"]["layers"]) == engine["layers"]["profiles"][0]["layers"]
    again = build(package, tmp_path, "--component", "text_encoder")
    assert again.exit_code == 0 and "kept" in again.stdout
    other = build(package, tmp_path, "--component", "text_encoder", "--batch", "2")
    assert other.exit_code == 1
    assert "profiles batch 1:1:24" in other.stderr and "--rebuild-stale" in other.stderr
    replaced = build(
        package, tmp_path, "--component", "text_encoder", "--batch", "2", "--rebuild-stale"
    )
    assert replaced.exit_code == 0, replaced.stderr


def test_engine_of_a_graph_that_takes_loras(lora_package: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    result = build(lora_package, tmp_path, "--component", "text_encoder.lora", "--json")
    assert result.exit_code == 0, result.stderr
    (entry,) = json.loads(result.stdout)["engines"]
    assert entry["component"] == "text_encoder.lora" and entry["built"]
    ranks = [span for name, span in entry["profiles"][0].items() if name.endswith(".rank")]
    assert len(ranks) == 3 * 6 and set(ranks) == {"1:16:128"}
    listed = run("inspect", lora_package, "--engine-dir", tmp_path)
    assert "*.rank 1:16:128, lora_rows 1:1:1" in listed.stdout
    assert max(map(len, listed.stdout.splitlines())) < 200
    other = build(lora_package, tmp_path, "--component", "text_encoder.lora", "--lora-rank", "16")
    assert other.exit_code == 1 and len(other.stderr) < 500
    assert "*.rank 1:16:128" in other.stderr and "*.rank 16:16:16" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_of_all_graphs_that_take_loras(family: str, precision: str, tmp_path: Path) -> None:
    """Convolutions included; a package's own build has them."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    checkpoint = families.build(family, tmp_path / "checkpoint")
    sdexport.export(checkpoint, tmp_path / "package", precision=precision, lora_inputs=True)
    result = build(tmp_path / "package", tmp_path / "engines", "--json")
    assert result.exit_code == 0, result.stderr
    built = {entry["component"] for entry in json.loads(result.stdout)["engines"]}
    assert {"unet", "unet.lora", "text_encoder.lora"} <= built
    assert ("text_encoder_2.lora" in built) == (family == "sdxl")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_of_all_graphs_that_take_other_adapters(
    family: str, precision: str, tmp_path: Path
) -> None:
    """They are built if they are named."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    checkpoint = families.build(family, tmp_path / "checkpoint")
    kinds = ("lora", "controlnet", "t2i_adapter", "ip_adapter")
    inputs: dict[str, Any] = {f"{kind}_inputs": True for kind in kinds}
    sdexport.export(checkpoint, tmp_path / "package", precision=precision, **inputs)
    graphs = [f"unet.{kind}" for kind in (*kinds[1:], "adapters")]
    chosen = [argument for graph in graphs for argument in ("--component", graph)]
    result = build(tmp_path / "package", tmp_path / "engines", "--json", *chosen)
    assert result.exit_code == 0, result.stderr
    built = [entry["component"] for entry in json.loads(result.stdout)["engines"]]
    assert built == graphs


@pytest.mark.slow
def test_engines_of_adapters(control_folder: Path, image_adapters: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    for package in (control_folder / "first", image_adapters / "t2i", image_adapters / "base"):
        result = build(package, tmp_path / package.name, "--json")
        assert result.exit_code == 0, result.stderr
        built = {entry["component"] for entry in json.loads(result.stdout)["engines"]}
        assert built == set(Package.load(package).manifest.components)


def test_inspect_layers_without_engines_and_of_an_image(package: Path, tmp_path: Path) -> None:
    none = run("inspect", package, "--engine-dir", tmp_path, "--layers")
    assert none.exit_code == 0 and "layers: no engine was built for this package" in none.stdout
    (tmp_path / "a.png").write_bytes(b"")
    image = run("inspect", tmp_path / "a.png", "--layers")
    assert image.exit_code == 2 and "--layers is for a package, not for an image" in image.stderr


def test_build_into_the_package_leaves_it_valid(package_copy: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    arguments = ("--backend", "tensorrt-rtx", "--component", "text_encoder")
    assert run("build", package_copy, *arguments).exit_code == 0
    assert (package_copy / "engines" / "tensorrt-rtx" / "text_encoder.plan").is_file()
    assert Package.load(package_copy).manifest


def test_generate_on_a_machine_without_gpu_is_one_line(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    if not cuda_device.absent():
        pytest.skip("there is a GPU")
    assert build(package, tmp_path, "--component", "unet").exit_code == 0
    out = tmp_path / "a.png"
    arguments = ("--backend", "unet=tensorrt-rtx", "--engine-dir", tmp_path)
    result = run("generate", package, "circle", "-o", out, *arguments)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "error: unet: no NVIDIA GPU can be used" in result.stderr


def test_build_takes_a_folder_and_prepares_for_onnx_runtime(package: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    arguments: dict[str, Any] = {"components": ["vae_decoder"], "engine_dir": tmp_path}
    (first,) = sdexport.build(package, **arguments)
    (second,) = sdexport.build(Package.load(package), "onnxruntime", **arguments)
    assert first.built and not second.built and first.plan == second.plan
    assert first.plan.is_relative_to(tmp_path / "onnxruntime")


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        (
            "webgpu",
            {},
            "webgpu has no engines to build; choose one of onnxruntime, openvino, tensorrt",
        ),
        ("onnxruntime", {"timing_cache": "x"}, "onnxruntime takes no timing_cache"),
    ],
)
def test_build_rejects_what_a_backend_does_not_have(
    package: Path, backend: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(sdexport.InvalidArgumentError, match=message):
        sdexport.build(package, backend, **options)
