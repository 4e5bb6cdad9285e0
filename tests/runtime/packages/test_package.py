"""A loader trusts nothing: every way in which a package can be broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package, PackageError, load_pipeline
from sdexport.engines.files import sha256_of
from sdexport.runtime.packages.manifest import manifest_digest
from tests.helpers.changed_package import (
    accept_files,
    as_optimum_folder,
    edit_manifest,
    edit_manifest_text,
)


def test_load_reads_the_manifest(package: Path) -> None:
    loaded = Package.load(package)
    manifest = loaded.manifest
    assert list(manifest.components) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert (manifest.default_size, manifest.downscale, manifest.latent_channels) == (
        (128, 128),
        8,
        4,
    )
    assert loaded.size == sum(
        f.stat().st_size for f in package.rglob("*") if f.is_file() and f.name != "sdexport.json"
    )


def test_manifest_round_trip(package: Path) -> None:
    manifest = Package.load(package).manifest
    assert manifest.to_json() == (package / "sdexport.json").read_text(encoding="utf-8")


def test_load_missing_folder_and_other_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        Package.load(tmp_path / "nowhere")
    with pytest.raises(PackageError, match=r"is not a package: it has no sdexport\.json"):
        Package.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["unet/model.onnx", "tokenizer/vocab.json", "scheduler/scheduler_config.json"]
)
def test_load_incomplete(package_copy: Path, name: str) -> None:
    (package_copy / name).unlink()
    with pytest.raises(PackageError, match=f"is incomplete: {re.escape(name)} is missing"):
        Package.load(package_copy, verify=False)


def test_load_truncated(package_copy: Path) -> None:
    path = package_copy / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(PackageError, match=r"unet/model\.onnx is truncated or altered"):
        Package.load(package_copy, verify=False)


def test_load_altered(package_copy: Path) -> None:
    path = package_copy / "vae_decoder" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PackageError, match=r"vae_decoder/model\.onnx was altered: its SHA-256"):
        Package.load(package_copy)
    assert Package.load(package_copy, verify=False)


@pytest.mark.parametrize("version", [None, 0, 1, 2, 4, "3", 10**40])
def test_load_unknown_version(package_copy: Path, version: object) -> None:
    edit_manifest(package_copy, lambda m: m.update(format_version=version))
    with pytest.raises(PackageError, match=r"format_version .* is unknown to this sdexport"):
        Package.load(package_copy)


@pytest.mark.parametrize(
    "path", ["../outside.bin", "/etc/hostname", "unet/../../outside.bin", "..\\x", "C:/x"]
)
def test_load_manifest_pointing_outside(package_copy: Path, path: str) -> None:
    (package_copy.parent / "outside.bin").write_bytes(b"secret")
    edit_manifest(
        package_copy, lambda m: m["files"].append({"path": path, "size": 6, "sha256": ""})
    )
    with pytest.raises(PackageError, match="points outside of the package"):
        Package.load(package_copy)


def test_load_link_leading_outside(package_copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.json"
    shutil.move(package_copy / "model_index.json", target)
    (package_copy / "model_index.json").symlink_to(target)
    with pytest.raises(PackageError, match=r"model_index\.json is a link"):
        Package.load(package_copy)


def test_load_graph_with_data_outside(package_copy: Path) -> None:
    import onnx
    from onnx.external_data_helper import set_external_data

    path = package_copy / "vae_encoder" / "model.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.raw_data) > 100)
    set_external_data(tensor, "../../secret.bin", length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())

    accept_files(package_copy, "vae_encoder/model.onnx")
    with pytest.raises(PackageError, match=r"secret\.bin' points outside of the package"):
        Package.load(package_copy, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("components"), "sdexport.json is damaged"),
        (lambda m: m.update(components=[]), "sdexport.json is damaged"),
        (lambda m: m.update(default_size=[128]), "sdexport.json is damaged"),
        (lambda m: m.update(downscale=0), "sizes must be positive"),
        (lambda m: m.update(surprise=1), "sdexport.json is damaged"),
        (lambda m: m.update(files=[{"path": 3}]), "sdexport.json is damaged"),
        (lambda m: m.update(scaling_factor=0), "scaling_factor must be positive"),
        (lambda m: m.update(scaling_factor="0.18"), "in a form that sdexport does not write"),
        (lambda m: m.update(latents_mean=None), "in a form that sdexport does not write"),
        (lambda m: m.update(latent_channels=10**9), "sizes must be positive"),
        (lambda m: m.update(tools=None), "sdexport.json is damaged"),
        (lambda m: m.update(source=[]), "sdexport.json is damaged"),
        (lambda m: m.update(verification={"unet.out_sample": 3}), "sdexport.json is damaged"),
        (lambda m: m.update(verification={"a.b": {"error": "x"}}), "sdexport.json is damaged"),
        (lambda m: m["components"].update(brain=m["components"]["unet"]), "brain"),
        (lambda m: m["components"]["unet"].update(files=[]), "lists no unet/model.onnx"),
    ],
)
def test_load_damaged_manifest(
    package_copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(package_copy, change)
    with pytest.raises(PackageError, match=message):
        Package.load(package_copy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"latent_channels": 4', '"latent_channels": 5'),
        ('"prediction_type": "epsilon"', '"prediction_type": "epsilom"'),
        ('"onnxruntime"', '"openvino"'),
        ('"sha256": "', '"sha256": "0'),
        ('"relative_l2": ', '"relative_l2": 1'),
        ('"digest": "', '"digest": "0'),
        ('"digest": "', '"digest": 1, "": "'),
        ("{", '{"note": "", '),
    ],
)
def test_load_manifest_that_was_edited(package_copy: Path, old: str, new: str) -> None:
    edit_manifest_text(package_copy, old, new)
    with pytest.raises(PackageError, match=r"does not match its own digest, so it was altered"):
        Package.load(package_copy, verify=False)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
def test_load_manifest_with_numbers_that_are_not_finite(package_copy: Path, number: str) -> None:
    path = package_copy / "sdexport.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"latent_channels": 4', f'"latent_channels": {number}'))
    with pytest.raises(PackageError, match=r"sdexport\.json is damaged"):
        Package.load(package_copy)


def test_load_manifest_without_digest(package_copy: Path) -> None:
    path = package_copy / "sdexport.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["digest"]
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PackageError, match=r"sdexport\.json is damaged: no 'digest'"):
        Package.load(package_copy)


def test_digest_is_that_of_the_manifest(package: Path) -> None:
    data = json.loads((package / "sdexport.json").read_text(encoding="utf-8"))
    assert Package.load(package, verify=False).digest == data["digest"] == manifest_digest(data)
    again = dict(reversed(data.items()))
    assert manifest_digest(again) == data["digest"]


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_load_manifest_that_is_no_json(package_copy: Path, content: str) -> None:
    (package_copy / "sdexport.json").write_text(content)
    with pytest.raises(PackageError, match=r"sdexport\.json is damaged"):
        Package.load(package_copy)


def test_tokenizer_damaged(package_copy: Path) -> None:
    (package_copy / "tokenizer" / "merges.txt").write_text("a b c\n")
    accept_files(package_copy)
    with pytest.raises(PackageError, match="merge 1 is not a pair"):
        load_pipeline(package_copy, verify=False)


@pytest.mark.parametrize(
    "name",
    ["scheduler/scheduler_config.json", "tokenizer/merges.txt", "reference/image.npz"],
)
def test_load_file_without_a_hash(package_copy: Path, name: str) -> None:
    """A manifest that says nothing of a file would let it be swapped."""

    def forget(manifest: dict[str, Any]) -> None:
        manifest["files"] = [r for r in manifest["files"] if r["path"] != name]

    edit_manifest(package_copy, forget)
    with pytest.raises(PackageError, match=f"lists no {name}"):
        Package.load(package_copy)


def test_load_external_data_without_a_hash(package_copy: Path) -> None:
    import onnx

    path = package_copy / "vae_encoder" / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin")
    record = {
        "path": "vae_encoder/model.onnx",
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
    }
    edit_manifest(package_copy, lambda m: m["components"]["vae_encoder"].update(files=[record]))
    with pytest.raises(PackageError, match=r"vae_encoder/weights\.bin is not listed"):
        Package.load(package_copy)


def test_open_graph_with_other_names(package_copy: Path) -> None:
    shutil.copyfile(
        package_copy / "vae_encoder" / "model.onnx", package_copy / "vae_decoder" / "model.onnx"
    )
    as_optimum_folder(package_copy)
    with (
        load_pipeline(package_copy) as pipe,
        pytest.raises(PackageError, match=r"vae_decoder: the graph has no input 'latent_sample'; "),
    ):
        pipe("a red circle", num_inference_steps=1)


def test_model_path_of_absent_component(package: Path) -> None:
    with pytest.raises(PackageError, match="has no text_encoder_2; it has text_encoder, unet"):
        Package.load(package).model_path("text_encoder_2")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"sample_size": "large"}),
        ("unet", {"sample_size": [16]}),
        ("unet", {"sample_size": -16}),
        ("vae_decoder", {"block_out_channels": 3}),
        ("vae_decoder", {"scaling_factor": [1]}),
        ("vae_decoder", {"latent_channels": "four"}),
    ],
)
def test_folder_of_optimum_with_damaged_configuration(
    package_copy: Path, part: str, change: dict[str, Any]
) -> None:
    as_optimum_folder(package_copy)
    path = package_copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PackageError, match=r"unet or vae_decoder config\.json"):
        Package.load(package_copy)


def test_folder_of_optimum_with_uneven_size(package_copy: Path) -> None:
    as_optimum_folder(package_copy)
    path = package_copy / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": [16, 24]}))
    assert Package.load(package_copy).manifest.default_size == (128, 192)


def test_folder_of_optimum_generates_the_same_image(package: Path, package_copy: Path) -> None:
    """Without manifest: everything is read from the configurations and the graphs."""
    as_optimum_folder(package_copy)
    with load_pipeline(package_copy) as bare, load_pipeline(package) as whole:
        a = bare("a red circle", num_inference_steps=3, seed=1)
        b = whole("a red circle", num_inference_steps=3, seed=1)
    assert a.images[0].tobytes() == b.images[0].tobytes()
