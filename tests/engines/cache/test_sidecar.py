"""The sidecar of a plan: written, read, compared, and never trusted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdexport import Package
from sdexport.engines import EngineError, TensorSpec
from sdexport.engines.cache.profiles import Span
from sdexport.engines.cache.sidecar import (
    Sidecar,
    StoredFile,
    combined_digest,
    model_digest,
    sidecar_path,
    with_own_digest,
)
from sdexport.engines.cache.staleness import key_differences
from sdexport.engines.onnx_file.graph_specs import graph_specs

SIDECAR = Sidecar(
    component="unet",
    backend="tensorrt",
    library_version="11.0",
    onnx_sha256="0" * 64,
    graph_sha256="3" * 64,
    target={"gpu": "NVIDIA A100", "compute_capability": "8.0"},
    profiles=({"batch": Span(1, 2, 8)},),
    options={"refittable": False, "compute_capabilities": []},
    inputs=(TensorSpec("sample", "float32", ("batch", 4)),),
    outputs=(TensorSpec("out_sample", "float32", ("batch", 4)),),
    package_sha256="4" * 64,
    files={"unet.plan": StoredFile(3, hashlib.sha256(b"abc").hexdigest())},
)


def write(folder: Path, text: str | None = None) -> Path:
    plan = folder / "unet.plan"
    plan.write_bytes(b"abc")
    sidecar_path(plan).write_text(SIDECAR.to_json() if text is None else text)
    return plan


def values() -> dict[str, Any]:
    """The sidecar as JSON values, without its own digest."""
    data: dict[str, Any] = json.loads(SIDECAR.to_json())
    del data["sidecar_sha256"]
    return data


def changed(**values: object) -> Sidecar:
    return Sidecar(**vars(SIDECAR) | values)  # type: ignore[arg-type]


def test_sidecar_survives_a_round_trip(tmp_path: Path) -> None:
    assert Sidecar.read(write(tmp_path)) == SIDECAR
    assert not key_differences(SIDECAR, SIDECAR)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"onnx_sha256": "2" * 64}, "it was built from another ONNX file"),
        (
            {"package_sha256": "5" * 64},
            "built for the package 444444444444 with the same ONNX file, here is the package 5555",
        ),
        ({"package_sha256": ""}, "here is a folder without sdexport.json"),
        ({"library_version": "11.1"}, "built with tensorrt 11.0, here is 11.1"),
        ({"target": {"gpu": "B200", "compute_capability": "8.0"}}, "gpu NVIDIA A100 instead of B2"),
        ({"options": {"refittable": True, "compute_capabilities": []}}, "refittable False instead"),
        ({"profiles": ({"batch": Span(1, 1, 1)},)}, "profiles batch 1:2:8 instead of batch 1:1:1"),
    ],
)
def test_sidecar_differences_in_words(values: dict[str, object], words: str) -> None:
    (difference,) = key_differences(SIDECAR, changed(**values))
    assert words in difference


def test_sidecar_of_a_truncated_plan(tmp_path: Path) -> None:
    plan = write(tmp_path)
    plan.write_bytes(b"ab")
    with pytest.raises(EngineError, match="truncated or altered: 2 bytes, not 3"):
        Sidecar.read(plan)


def test_sidecar_or_plan_missing(tmp_path: Path) -> None:
    plan = write(tmp_path)
    sidecar_path(plan).unlink()
    with pytest.raises(FileNotFoundError, match="did not finish"):
        Sidecar.read(plan)
    plan.unlink()
    with pytest.raises(FileNotFoundError, match="no engine"):
        Sidecar.read(plan)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", "[" * 5000, '{"format_version": 9}'])
def test_sidecar_rejects_garbage(tmp_path: Path, text: str) -> None:
    with pytest.raises(EngineError, match=r"unet\.json is damaged"):
        Sidecar.read(write(tmp_path, text))


@pytest.mark.parametrize("version", [1, 2])
def test_sidecar_of_an_older_sdexport(tmp_path: Path, version: int) -> None:
    text = json.dumps(values() | {"format_version": version, "files": {}})
    with pytest.raises(EngineError, match=r"unet\.json is of an older sdexport and lacks the hash"):
        Sidecar.read(write(tmp_path, text))


def test_sidecar_with_one_changed_character(tmp_path: Path) -> None:
    text = SIDECAR.to_json()
    plan = write(tmp_path, text.replace('"library_version": "11.0"', '"library_version": "11.1"'))
    with pytest.raises(EngineError, match="its content does not match its own digest"):
        Sidecar.read(plan)


def test_sidecar_must_have_a_hash_of_its_plan(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"it has no hash of unet\.plan"):
        Sidecar.read(write(tmp_path, with_own_digest(values() | {"files": {}})))


FILE = {"size": 3, "sha256": "0" * 64}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def test_sidecar_with_a_key_twice_is_damaged(tmp_path: Path) -> None:
    text = SIDECAR.to_json().replace("{", '{"backend": "openvino", ', 1)
    plan = write(tmp_path, text)
    with pytest.raises(EngineError, match="the key 'backend' is there twice"):
        Sidecar.read(plan)


@given(name=st.sampled_from(sorted(values())), value=JSON)
@example(name="files", value={"": FILE})
@example(name="files", value={"0": FILE})
@example(name="files", value={"unet.json": {"size": float("inf"), "sha256": ""}})
@example(name="files", value={"unet.plan": {"size": float("nan"), "sha256": "0"}})
@example(name="files", value={"unet.plan": {"size": 3, "sha256": None}})
@example(name="files", value={"unet." + "a" * 300: FILE})
@example(name="files", value={"unet.\0": FILE})
@example(name="files", value={"unet.\ud800": FILE})
@example(name="files", value={"unet.plan": FILE, "unet.more": FILE})
@example(name="files", value={})
def test_sidecar_survives_any_value(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    data = values()
    data[name] = value
    plan = write(tmp_path_factory.mktemp("s"), with_own_digest(data))
    try:
        key_differences(Sidecar.read(plan), SIDECAR)
    except EngineError as error:
        assert "unet" in str(error)


def test_model_digest_is_the_files_own_and_the_manifests(package: Path) -> None:
    loaded = Package.load(package)
    for component in loaded.manifest.components:
        assert loaded.model_digest(component) == model_digest(loaded.model_path(component))


def test_combined_digest_sees_names_and_contents() -> None:
    files = [("model.onnx", "a"), ("model.onnx_data", "b")]
    assert combined_digest(files) == combined_digest(files[::-1])
    assert combined_digest(files) != combined_digest(
        [("model.onnx", "b"), ("model.onnx_data", "a")]
    )


def test_graph_specs_are_those_of_onnx(package: Path) -> None:
    import onnx

    for component in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        path = package / component / "model.onnx"
        graph = onnx.load(path).graph
        for ours, theirs in zip(graph_specs(path), (graph.input, graph.output), strict=True):
            assert [spec.name for spec in ours] == [value.name for value in theirs]
            for spec, value in zip(ours, theirs, strict=True):
                shape = value.type.tensor_type.shape.dim
                assert spec.shape == tuple(d.dim_param or d.dim_value for d in shape)
                assert spec.dtype == {1: "float32", 7: "int64"}[value.type.tensor_type.elem_type]


@given(cut=st.integers(0, 5000), garbage=st.binary(max_size=30))
def test_graph_specs_garbage_is_an_engine_error(
    package: Path, tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("g") / "model.onnx"
    path.write_bytes((package / "text_encoder" / "model.onnx").read_bytes()[:cut] + garbage)
    with pytest.raises(EngineError, match=r"model\.onnx"):
        graph_specs(path)
