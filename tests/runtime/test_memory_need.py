"""Estimates of memory: compared with the peaks that were measured with full-size models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.checkpoints import NAMES
from sdexport import Package
from sdexport.checkpoints.published_configs import FAMILIES
from sdexport.commands.memory_check import verification_calls
from sdexport.engines.errors import EngineError
from sdexport.export_steps import TRACING
from sdexport.runtime import component_memory
from sdexport.runtime import memory_need as module
from sdexport.runtime.component_backends import parse_backends
from sdexport.runtime.component_memory import Call
from sdexport.runtime.memory_need import build_need, image_calls, memory_need
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.manifest import ComponentRecord, FileRecord, Manifest
from tests.tolerances import MEMORY_ESTIMATE

MEASURED_GRAPHS = ("token_embedding", "inputs_embeds")
"""Further graphs of text encoders that packages had when the full-size table was measured."""
CHANGED_SINCE = [("fp16", "generate"), ("fp16", "verify")]
"""Measured when ONNX Runtime still converted float16 weights in memory, 1.7 times what it keeps."""
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def full_size_rows() -> list[dict[str, Any]]:
    """The peaks of the table of full-size models, with what the estimates are made from."""
    rows = []
    for path in sorted(RESULTS.glob("full_size.*.json")):
        report = json.loads(path.read_text())
        published = next(f for f in FAMILIES if f.name == NAMES[report["family"]])
        stored = {name: round(size * 1e9) for name, size in report["component_gb"].items()}
        text_encoders = [name for name in stored if name.startswith("text_encoder")]
        precision = dict.fromkeys(stored, report["precision"])
        if "XL" in published.name:  # its VAE stays in float32
            precision |= {"vae_decoder": "fp32", "vae_encoder": "fp32"}
        vae = dict.fromkeys(("vae_decoder", "vae_encoder"), published.vae)
        halves = [f"{name}.{half}" for name in text_encoders for half in MEASURED_GRAPHS]
        row = {
            "family": _FAMILY_NAMES[report["family"]],
            "precision": precision,
            "stored": stored,
            "configs": {"unet": published.unet, **vae, **{name: {} for name in text_encoders}},
            "graphs": [*stored, *halves],
            "size": 256,
            "backend": "onnxruntime",
            "low_memory": False,
        }
        for command, stage in report["stages"].items():
            if "peak_gb" in stage and (report["precision"], command) not in CHANGED_SINCE:
                rows.append(row | {"command": command, "peak_gb": stage["peak_gb"]})
    return rows


_FAMILY_NAMES = {
    "sd15": "stable-diffusion",
    "sd2": "stable-diffusion",
    "sdxl": "stable-diffusion-xl",
    "refiner": "stable-diffusion-xl-refiner",
}
ROWS = [*json.loads((RESULTS / "memory_need.json").read_text()), *full_size_rows()]


def package_of(row: dict[str, Any], folder: Path) -> Package:
    """A package with files of the sizes of a full-size one, and nothing in them."""
    components = {}
    for name, size in row["stored"].items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(row["configs"][name]))
        with (folder / name / "model.onnx").open("wb") as file:
            file.truncate(size)
        if row.get("prepared"):
            plan = folder / "engines" / "onnxruntime" / f"{name}.onnx"
            plan.parent.mkdir(parents=True, exist_ok=True)
            plan.touch()
        graphs = [graph for graph in row["graphs"] if graph.partition(".")[0] == name]
        files = [f"{name}/{graph.partition('.')[2] or 'model'}.onnx" for graph in graphs]
        records = tuple(FileRecord(file, 1, "") for file in files)
        components[name] = ComponentRecord(records, row["precision"][name], 23, (), ())
    side = 1024 if "xl" in row["family"] else 512
    manifest = Manifest(
        family=row["family"],
        source={},
        latent_channels=4,
        downscale=8,
        scaling_factor=0.18,
        default_size=(side, side),
        prediction_type="epsilon",
        components=components,
        files=(),
        tools={},
    )
    return Package(folder, manifest, {}, {}, surveys=GraphSurveys(folder))


def estimate(row: dict[str, Any], package: Package) -> int | None:
    if row["command"] == "export":
        bytes_of = {"fp32": 1, "fp16": 2}
        return TRACING + max(
            size * bytes_of[row["precision"][name]] for name, size in row["stored"].items()
        )
    if row["command"] == "build":
        return build_need(package, (), row["backend"], precision=row.get("build_precision"))
    if row["command"] == "float32":
        calls = [Call(package.family.denoiser, 2, 8, 8, in_float32=True)]
    elif row["command"] == "verify":
        calls = verification_calls(package)
    else:
        side, from_image = row["size"], package.family.starts_from_image
        calls = image_calls(package, width=side, height=side, from_image=from_image)
    return memory_need(
        package,
        calls,
        parse_backends([row["backend"]]),
        options={"expected_images": 1} if row["command"] == "generate" else {},
        low_memory=row["low_memory"],
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['family']} {row['command']}")
def test_estimate_is_near_the_measured_peak(row: dict[str, Any], tmp_path: Path) -> None:
    need = estimate(row, package_of(row, tmp_path))
    assert need is not None
    assert need / 1e9 == pytest.approx(row["peak_gb"], rel=MEMORY_ESTIMATE)


def test_every_family_and_command_was_measured() -> None:
    exported = {row["family"] for row in ROWS if row["command"] == "export"}
    assert exported >= {
        "stable-diffusion",
        "stable-diffusion-xl",
        "stable-diffusion-xl-refiner",
    }
    assert {row["command"] for row in ROWS} == {"generate", "verify", "build", "export", "float32"}
    assert {row["backend"].partition(",")[0] for row in ROWS} == {"onnxruntime", "openvino"}


def test_need_grows_with_the_image_and_falls_with_tiles_and_low_memory(package: Package) -> None:
    loaded = Package.load(package, verify=False)

    def need(side: int, low_memory: bool = False, **further: Any) -> int:
        calls = image_calls(loaded, width=side, height=side, **further)
        found = memory_need(loaded, calls, low_memory=low_memory)
        assert found is not None
        return found

    assert need(128) < need(512) < need(2048)
    assert need(2048, batch=2) > need(2048) > need(2048, guided=False)
    assert need(2048, batch=4, max_batch=1) == need(2048)
    assert need(4096, vae_tile=512) < need(4096)
    assert need(128, low_memory=True) < need(128)


def test_verification_counts_both_graphs_of_a_prepared_denoiser(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the recorded sizes the package's own graph runs, while the prepared one is open."""
    loaded = Package.load(package, verify=False)
    calls = verification_calls(loaded)
    without = [call for call in calls if not call.unprepared]
    assert len(calls) == len(without) + 1
    plain = memory_need(loaded, calls)
    assert plain is not None and plain == memory_need(loaded, without)
    monkeypatch.setattr(module, "form_of", lambda *_: "onnxruntime prepared")
    until_decoder = calls[: calls.index(Call("vae_decoder", 2, 8, 8))]
    both = memory_need(loaded, until_decoder)
    one = memory_need(loaded, [call for call in until_decoder if not call.unprepared])
    weights = sum(record.size for record in loaded.manifest.components["unet"].files)
    assert both is not None and one is not None and both - one >= weights


def test_verification_counts_graphs_in_float32_where_they_run_in_less(package: Path) -> None:
    """They need the stored weights and little more, next to what is open."""
    loaded = Package.load(package, verify=False)
    calls = verification_calls(loaded)
    without = [call for call in calls if not call.in_float32]
    assert len(calls) == len(without) + len(loaded.graphs)

    def need(backend: str, chosen: list[Call], **options: Any) -> int:
        found = memory_need(loaded, chosen, parse_backends([backend]), **options)
        assert found is not None
        return found

    for backend in ("onnxruntime", "openvino", "openvino,precision=f32"):
        assert need(backend, calls) == need(backend, without)
    unet = [call for call in calls if call.component == "unet"][:3]
    alone = [call for call in unet if not call.in_float32]
    stored = sum(record.size for record in loaded.manifest.components["unet"].files)
    for backend in ("openvino,precision=bf16", "unet=openvino,precision=i8"):
        assert need(backend, unet) >= need(backend, alone) + stored
        one_by_one = need(backend, unet, low_memory=True)
        assert need(backend, alone, low_memory=True) <= one_by_one < need(backend, unet)


def test_decoder_counts_in_its_own_form_during_the_denoising(package: Path) -> None:
    """Only OpenVINO opens it meanwhile, whatever runs the denoiser."""
    loaded = Package.load(package, verify=False)

    def need(denoiser: str, decoder: str) -> int:
        backends = parse_backends(
            ["text_encoder=onnxruntime", f"unet={denoiser}", f"vae_decoder={decoder}"]
        )
        found = memory_need(loaded, [Call("unet", 2, 8, 8)], backends)
        assert found is not None
        return found

    weights = sum(record.size for record in loaded.manifest.components["vae_decoder"].files)
    for denoiser in ("onnxruntime", "openvino,precision=bf16"):
        alone = need(denoiser, "onnxruntime")
        half, full = (need(denoiser, f"openvino,precision={p}") for p in ("bf16", "f32"))
        assert alone + weights / 2 < half < alone + weights < full


def test_factors_that_stay_half_count_half(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them as they are stored, and the largest in float32."""
    loaded = Package.load(package, verify=False)
    calls = [Call("unet", 2, 8, 8)]
    monkeypatch.setattr(module, "form_of", lambda *_: "onnxruntime fp16")
    before = memory_need(loaded, calls)
    monkeypatch.setattr(component_memory, "widens", lambda path: path)
    monkeypatch.setattr(
        component_memory, "kept_halves", lambda _: [SimpleNamespace(size=100_000)] * 10
    )
    after = memory_need(loaded, calls)
    assert before is not None and after is not None
    assert 700_000 < before - after < 900_000

    def fail(path: Path) -> None:
        raise EngineError(f"{path} is damaged")

    monkeypatch.setattr(component_memory, "widens", fail)
    assert memory_need(loaded, calls) == before


def test_build_of_a_package_that_is_converted_needs_more(tmp_path: Path) -> None:
    rows = [row for row in ROWS if (row["command"], row["backend"]) == ("build", "onnxruntime")]
    needs = {}
    for row in rows:
        precision = row["precision"]["unet"]
        needs[precision] = estimate(row, package_of(row, tmp_path / precision))
    assert needs.keys() == {"fp16", "fp32"}
    assert (needs["fp16"] or 0) > 1.2 * (needs["fp32"] or 0)


def test_build_of_a_graph_of_a_component_counts_its_weights(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row["command"] == "build")
    package = package_of({**row, "graphs": [*row["graphs"], "unet.controlnet"]}, tmp_path)
    need = build_need(package, ["unet"], row["backend"])
    assert need and build_need(package, ["unet.controlnet"], row["backend"]) == need
    assert build_need(package, ["unet.lora"], row["backend"]) is None  # it has none


def test_unknown_needs(package: Package) -> None:
    """GPUs are not estimated; an Optimum folder without configurations is."""
    loaded = Package.load(package, verify=False)
    calls = image_calls(loaded, width=64, height=64)
    for backend in ("onnxruntime-cuda", "webgpu", "openvino,device=GPU", "unet=tensorrt-rtx"):
        assert memory_need(loaded, calls, parse_backends([backend])) is None
    assert build_need(loaded, (), "tensorrt") is None
