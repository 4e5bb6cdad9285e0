"""Packages that must be signed, and packages whose graphs hold what no export writes."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdexport import InvalidArgumentError, Package, PackageError, load_pipeline, verify
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.cache.engine_store import Built
from sdexport.engines.cache.sidecar import StoredFile, sidecar_path
from sdexport.runtime.component_engines import open_component
from sdexport.runtime.packages.minisign import PublicKey, SecretKey
from sdexport.runtime.packages.signature import SIGNATURE, sign_package, signer
from tests.helpers.changed_package import accept_files, as_optimum_folder, edit_manifest

KEY = SecretKey.generate()
OTHER = SecretKey.generate()


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE_DIR, tmp_path / "package", copy_function=shutil.copyfile)


@pytest.fixture
def signed(unsigned: Path) -> Path:
    pytest.importorskip("cryptography", reason="the extra sdexport[sign] is not installed")
    sign_package(Package.load(unsigned), KEY)
    return unsigned


def load(folder: Path, key: SecretKey = KEY, **options: Any) -> Package:
    return Package.load(folder, trusted_key=key.public, **options)


def test_signed_packages_load(signed: Path, tmp_path: Path) -> None:
    package = load(signed)
    assert package.signature is not None
    assert package.signature.key_id == KEY.public.key_id == signer(package)
    assert f"package:{package.digest}" in package.signature.comment
    (tmp_path / "a.pub").write_text(KEY.public.to_text())
    for key in (tmp_path / "a.pub", str(tmp_path / "a.pub"), KEY.public.to_base64()):
        assert Package.load(signed, trusted_key=key, trust="signed").signature
    assert verify(signed, trusted_key=KEY.public).passed
    with load_pipeline(signed, trusted_key=KEY.public) as pipe:
        assert pipe.package.signature == package.signature
    assert Package.load(signed).signature is None


def alter_manifest(folder: Path) -> None:
    """A change that the manifest's own digest agrees with, as an attacker would make it."""
    edit_manifest(folder, lambda manifest: manifest["tools"].update(torch="mine"))


def alter_file(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(path.read_text() + " ")
    accept_files(folder, "model_index.json")


def alter_white_space(folder: Path) -> None:
    path = folder / "sdexport.json"
    path.write_text(json.dumps(json.loads(path.read_text())))


def replace_signature(folder: Path) -> None:
    sign_package(Package.load(folder), OTHER)


def link_signature(folder: Path) -> None:
    moved = shutil.move(folder / SIGNATURE, folder.parent / "elsewhere")
    (folder / SIGNATURE).symlink_to(moved)


def pipe_signature(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    os.mkfifo(folder / SIGNATURE)


def sign_another(folder: Path) -> None:
    other = shutil.copytree(folder, folder.parent / "other")
    alter_manifest(other)
    sign_package(Package.load(other), KEY)
    shutil.copyfile(other / SIGNATURE, folder / SIGNATURE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / SIGNATURE).unlink(), r"is not signed: it has no sdexport\.json"),
        (alter_manifest, "is not valid: what was signed was altered"),
        (alter_file, "is not valid: what was signed was altered"),
        (alter_white_space, "is not valid: what was signed was altered"),
        (sign_another, "is not valid: what was signed was altered, or is another one"),
        (replace_signature, "was made with key [0-9A-F]{16}, not with"),
        (link_signature, "is a link"),
        (pipe_signature, "is not a regular file"),
        (lambda folder: (folder / SIGNATURE).write_bytes(b"x" * 10**6), "at most 16,384 are read"),
        (lambda folder: (folder / SIGNATURE).write_bytes(b""), "is damaged"),
        (lambda folder: (folder / "sdexport.json").unlink(), "is not signed: it has no sdexport"),
    ],
)
def test_packages_that_the_key_did_not_sign(
    signed: Path, change: Callable[[Path], object], message: str
) -> None:
    change(signed)
    with pytest.raises(PackageError, match=message):
        verify(signed, trusted_key=KEY.public)
    with pytest.raises(PackageError, match=message) as raised:
        load(signed)
    assert "\n" not in str(raised.value)


def test_altered_weights_of_a_signed_package(signed: Path) -> None:
    path = signed / "unet" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PackageError, match="was altered: its SHA-256 does not match"):
        load(signed)
    with pytest.raises(InvalidArgumentError, match="trusted_key needs verify=True"):
        load(signed, verify=False)
    with pytest.raises(PackageError, match="was altered"):
        Package.load(signed)  # which is what signing needs first


def test_signing_a_package_that_changed_since(signed: Path) -> None:
    package, before = Package.load(signed), (signed / SIGNATURE).read_bytes()
    alter_manifest(signed)
    with pytest.raises(PackageError, match="the package changed on disk; load it again"):
        sign_package(package, KEY)
    assert (signed / SIGNATURE).read_bytes() == before


def test_arguments_of_trust_are_checked(unsigned: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="trust must be one of warn, signed, got 'all'"):
        Package.load(unsigned, trust="all")
    with pytest.raises(FileNotFoundError, match="no such file, and no public key of 56 char"):
        Package.load(unsigned, trusted_key="no.pub")
    for key in ("", " ", 5, b"RW", ["a.pub"]):
        with pytest.raises(InvalidArgumentError, match="trusted_key must be a file or a public"):
            Package.load(unsigned, trusted_key=key)  # type: ignore[arg-type]


def test_folders_without_a_manifest_cannot_be_signed(signed: Path) -> None:
    as_optimum_folder(signed)
    with pytest.raises(PackageError, match=r"is not signed: it has no sdexport\.json"):
        load(signed)
    (signed / SIGNATURE).unlink()
    with pytest.raises(PackageError, match=r"has no sdexport\.json, which is what a signature"):
        sign_package(Package.load(signed), KEY)


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    path = folder / "vae_encoder" / "model.onnx"
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    accept_files(folder, "vae_encoder/model.onnx")


def add_node(operator: str, domain: str = "", **attributes: Any) -> Callable[[Any], None]:
    node = helper.make_node(operator, [], ["unused"], domain=domain, **attributes)
    return lambda model: model.graph.node.append(node)


LOOP = add_node("Loop", body=helper.make_graph([], "endless", [], []))


def test_unknown_operators_are_warned_of_or_rejected(
    unsigned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_graph(unsigned, LOOP)
    change_graph(unsigned, add_node("Decode\x1b[2J", "com.evil"))
    with caplog.at_level(logging.WARNING):
        Package.load(unsigned)
    [record] = caplog.records
    message = record.getMessage()
    assert (
        "vae_encoder: the graph holds what no export writes: Loop, com.evil.Decode\\x1b" in message
    )
    with pytest.raises(PackageError, match=r"Loop, .*; it must be signed with a trusted key"):
        Package.load(unsigned, trust="signed")


def test_unknown_operators_are_taken_from_whom_the_key_belongs_to(
    signed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_graph(signed, LOOP)
    sign_package(Package.load(signed), KEY)
    caplog.clear()
    assert load(signed, trust="signed").signature
    assert not caplog.records
    with pytest.raises(PackageError, match="must be signed"):
        Package.load(signed, trust="signed")  # a signature that nobody asked for proves nothing


def test_packages_of_known_operators_are_not_warned_of(
    unsigned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Package.load(unsigned, trust="signed")
    assert not caplog.records


def external(
    location: str, offset: str = "0", length: str | None = "16"
) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(np.zeros(4, np.float32), "added")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        places = {"location": location, "offset": offset, "length": length}
        for key, value in places.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)
        model.graph.initializer.append(tensor)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external("config.json", offset="100000"), "ends at byte 100016 of 'config.json', which"),
        (external("config.json", offset="-1"), "has no valid offset or length"),
        (external("config.json", offset="9" * 40), "has no valid offset or length"),
        (external("config.json", length="1000000"), "has 1000000 bytes, not 16"),
        (external("config.json", length="٣"), "has no valid offset or length"),
        (lambda model: model.graph.initializer.append(huge()), "has no data for its 1.1e"),
    ],
)
def test_absurd_graphs_are_rejected_whoever_signed_them(
    unsigned: Path, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    change_graph(unsigned, change)
    for options in ({}, {"trust": "signed"}):
        with pytest.raises(PackageError, match=message):
            Package.load(unsigned, **options)  # type: ignore[arg-type]


def huge() -> TensorProto:
    return TensorProto(name="huge", data_type=1, dims=[2**20, 2**20])


def test_weights_in_files_with_odd_names(unsigned: Path) -> None:
    name = "weights\x1b[2J.bin"
    (unsigned / "vae_encoder" / name).write_bytes(bytes(16))
    change_graph(unsigned, external(name))

    def add(manifest: dict[str, Any]) -> None:
        record = dict(manifest["components"]["vae_encoder"]["files"][0])
        record["path"] = f"vae_encoder/{name}"
        manifest["components"]["vae_encoder"]["files"].append(record)

    edit_manifest(unsigned, add)
    accept_files(unsigned, f"vae_encoder/{name}")
    with pytest.raises(PackageError, match=r"lists 'vae_encoder/weights\\x1b"):
        Package.load(unsigned)


def test_engines_inside_of_a_signed_package_are_not_used(
    signed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from sdexport import build

    [own] = build(signed, "onnxruntime", components=["vae_decoder"])
    elsewhere = tmp_path / "engines"
    build(signed, "onnxruntime", components=["vae_decoder"], engine_dir=elsewhere)
    for options in ({"trusted_key": KEY.public}, {"trust": "signed"}):
        package = Package.load(signed, **options)  # type: ignore[arg-type]
        own.plan.write_bytes(b"not what was built")
        caplog.clear()
        with load_pipeline(signed, **options) as pipe:  # type: ignore[arg-type]
            assert pipe.settings["engines"] == ()
        open_component(package, "vae_decoder").close()
        assert "is not covered by a signature" in caplog.text
        with load_pipeline(signed, engine_dir=elsewhere, **options) as pipe:  # type: ignore[arg-type]
            assert pipe.settings["engines"] == ("vae_decoder",)
        plan = signed / "engines" / "tensorrt" / "unet.plan"
        plan.parent.mkdir(exist_ok=True)
        plan.write_bytes(b"machine code")
        with pytest.raises(PackageError, match=r"unet\.plan is not covered by a signature"):
            open_component(package, "unet", "tensorrt")


def _agree(engine: Built) -> None:
    """Write an engine's sidecar anew, with the hashes of its files as they are."""
    files = {name: StoredFile.of(engine.plan.with_name(name)) for name in engine.sidecar.files}
    sidecar_path(engine.plan).write_text(replace(engine.sidecar, files=files).to_json())


def test_prepared_graphs_are_surveyed(unsigned: Path, caplog: pytest.LogCaptureFixture) -> None:
    from sdexport import EngineError, build

    [own] = build(unsigned, "onnxruntime", components=["vae_decoder"])
    package = Package.load(unsigned)
    open_component(package, "vae_decoder").close()
    assert not caplog.records
    whole = onnx.load(own.plan, load_external_data=False)
    model = onnx.ModelProto.FromString(whole.SerializeToString())
    model.graph.initializer.append(huge())
    own.plan.write_bytes(model.SerializeToString())
    open_component(package, "vae_decoder").close()
    assert "vae_decoder.onnx is truncated or altered" in caplog.text
    _agree(own)
    with pytest.raises(EngineError, match=r"has no data for its 1\.1e"):
        open_component(package, "vae_decoder")
    external("../../unet/model.onnx")(whole)
    own.plan.write_bytes(whole.SerializeToString())
    _agree(own)
    with pytest.raises(EngineError, match=r"weights in another folder, '\.\./\.\./unet/model"):
        open_component(package, "vae_decoder")
    group = b"\x0b\x0c"  # a field that protocol buffers skip and the survey does not take
    own.plan.write_bytes(whole.SerializeToString() + group)
    _agree(own)
    with pytest.raises(EngineError, match=r"vae_decoder\.onnx is not an ONNX model, or is damaged"):
        open_component(package, "vae_decoder")


def test_public_key_objects_are_taken(signed: Path) -> None:
    assert Package.load(signed, trusted_key=PublicKey.read(KEY.public.to_base64())).signature
