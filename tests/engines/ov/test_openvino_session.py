"""OpenVINO: its options, its cache, and files that it must reject."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.engines import EngineError, open_session
from sdexport.engines.errors import PackageError
from sdexport.engines.files import sha256_of
from tests.helpers.unet_sessions import feeds
from tests.tolerances import BF16_COSINE, COMPONENT_REL, assert_close

openvino = pytest.importorskip("openvino")

from sdexport.engines.ov import openvino_session  # noqa: E402


@pytest.fixture(scope="module")
def expected(package: Path) -> np.ndarray:
    with open_session(package / "unet" / "model.onnx") as session:
        return session.run(feeds())["out_sample"]


def run(model: Path, **options: Any) -> np.ndarray:
    with open_session(model, "openvino", **options) as session:
        return session.run(feeds())["out_sample"]


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"threads": 2, "streams": 2}])
def test_openvino_agrees_with_onnxruntime(
    package: Path, expected: np.ndarray, options: dict[str, Any]
) -> None:
    assert_close(run(package / "unet" / "model.onnx", **options), expected, rel=COMPONENT_REL)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_openvino_lower_precisions_are_close(
    package: Path, expected: np.ndarray, precision: str
) -> None:
    actual = run(package / "unet" / "model.onnx", precision=precision)
    assert actual.dtype == np.float32
    a, b = actual.ravel().astype(float), expected.ravel().astype(float)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= BF16_COSINE


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that OpenVINO compiles."""
    models: list[Any] = []
    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core,
        "compile_model",
        lambda core, model, *more: models.append(model) or compile_model(core, model, *more),
    )
    return models


def test_openvino_compiles_for_the_first_shapes_then_for_all(
    package: Path, compiled: list[Any]
) -> None:
    path = package / "unet" / "model.onnx"
    trials = [feeds(), feeds(), feeds(batch=3, height=24), feeds(), feeds(batch=1, width=8)]
    with open_session(path, "openvino") as session, open_session(path, "onnxruntime") as other:
        for trial in trials:
            expected = other.run(trial)["out_sample"]
            assert_close(session.run(trial)["out_sample"], expected, rel=COMPONENT_REL)
    assert [model.is_dynamic() for model in compiled] == [False, True]
    compiled.clear()
    with open_session(path, "openvino", static=False) as session:
        assert [model.is_dynamic() for model in compiled] == [True]
        session.run(feeds())
    assert [model.is_dynamic() for model in compiled] == [True]


def test_openvino_session_called_with_and_without_bound_inputs(
    package: Path, compiled: list[Any]
) -> None:
    """Every call is right, and after a few of them the model is not compiled again."""
    whole = feeds(batch=2)
    one = whole["sample"][:1]
    whole["sample"] = np.concatenate([one, one])
    part = {"sample": one, "timestep": whole["timestep"]}
    path = package / "unet" / "model.onnx"
    with open_session(path, "onnxruntime") as other:
        expected = other.run(whole)["out_sample"]
    with open_session(path, "openvino") as session:
        for call in ("whole", "bound", "bound", "whole", "bound", "whole"):
            if call == "whole":
                outputs = session.run(whole)
            else:
                embeds = whole["encoder_hidden_states"]
                with session.bind(shared=["sample"], encoder_hidden_states=embeds) as bound:
                    outputs = bound.run(part)
                    assert_close(bound.run(part)["out_sample"], expected, rel=COMPONENT_REL)
            assert_close(outputs["out_sample"], expected, rel=COMPONENT_REL)
    assert [model.get_friendly_name() == "once" for model in compiled] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(("limit", "idle"), [(0, 0), (10**12, 1)])
def test_large_values_that_are_computed_once_are_freed(
    limit: int, idle: int, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle infer request keeps its last inputs, such as weights to which LoRAs are added."""
    monkeypatch.setattr(openvino_session, "LARGE_ONCE", limit)
    call = feeds()
    constants = {"encoder_hidden_states": call.pop("encoder_hidden_states")}
    with open_session(package / "unet" / "model.onnx", "openvino") as session:
        assert isinstance(session, openvino_session.OpenVinoSession)
        outputs = []
        for _ in range(2):
            with session.bind(**constants) as bound:
                outputs.append(bound.run(call)["out_sample"])
                compiled = session._compiled
                assert compiled is not None and compiled.once is not None
                assert len(compiled.idle) == 1
            assert len(compiled.idle) == idle
    assert np.array_equal(*outputs)


def test_openvino_cache_is_written_used_and_survives_damage(
    package: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    model, cache = package / "unet" / "model.onnx", tmp_path / "new" / "cache"
    run(model, cache_dir=cache)
    (blob,) = cache.rglob("*.blob")
    before = blob.stat().st_mtime_ns
    time.sleep(0.01)
    assert_close(run(model, cache_dir=cache), expected, rel=COMPONENT_REL)
    assert blob.stat().st_mtime_ns == before
    blob.chmod(0o600)
    os.truncate(blob, 1000)
    assert_close(run(model, cache_dir=cache), expected, rel=COMPONENT_REL)


@pytest.mark.parametrize("damage", ["flipped", "no hash", "wrong hash", "pipe"])
def test_openvino_cache_that_was_altered_is_compiled_again(
    package: Path,
    expected: np.ndarray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    """OpenVINO itself reads a blob with another byte, and computes something else."""
    caplog.set_level("INFO")
    model = package / "unet" / "model.onnx"
    first = run(model, cache_dir=tmp_path)
    (blob,) = tmp_path.rglob("*.blob")
    digest, content = blob.with_suffix(".sha256"), bytearray(blob.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0x40
        blob.chmod(0o600)
        blob.write_bytes(content)
    elif damage == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with a name")
        blob.unlink()
        os.mkfifo(blob)
    elif damage == "no hash":
        digest.unlink()
    else:
        digest.write_text("0" * 64)
    np.testing.assert_array_equal(run(model, cache_dir=tmp_path), first)
    assert f"unet: {blob}" in caplog.text and "deleted and compiled again" in caplog.text
    assert digest.read_text().strip() == sha256_of(blob)
    caplog.clear()
    run(model, cache_dir=tmp_path)
    assert not caplog.messages


def test_nothing_counts_that_was_compiled_from_altered_weights(
    package: Path, tmp_path: Path
) -> None:
    def altered() -> None:
        raise PackageError("unet/model.onnx_data was altered")

    with pytest.raises(PackageError, match="was altered"):
        run(package / "unet" / "model.onnx", cache_dir=tmp_path, check=altered)
    assert list(tmp_path.rglob("*.blob")) and not list(tmp_path.rglob("*.sha256"))


def test_openvino_cache_leaves_other_files_alone(package: Path, tmp_path: Path) -> None:
    (tmp_path / "other.blob").write_bytes(b"of another program")
    run(package / "unet" / "model.onnx", cache_dir=tmp_path)
    assert (tmp_path / "other.blob").read_bytes() == b"of another program"


def test_openvino_cache_folder_that_cannot_be_created(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"unet: the cache folder .* cannot be created"):
        run(package / "unet" / "model.onnx", cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision must be one of f32, bf16, f16, i8, got 'fp16'"),
        ({"threads": 0}, "threads must be a whole number from 1 to 4096, got 0"),
        ({"streams": -1}, "streams must be"),
        ({"streams": 10**14}, "streams must be a whole number from 1 to 4096"),
    ],
)
def test_openvino_rejects_options(package: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(package / "unet" / "model.onnx", **options)


def test_openvino_rejects_absent_devices(package: Path) -> None:
    with pytest.raises(EngineError, match=r"^unet: OpenVINO cannot load model\.onnx: [^\n]+$"):
        run(package / "unet" / "model.onnx", device="NPU")
    with pytest.raises(EngineError, match=r"^unet: OpenVINO cannot load model\.onnx: [^\n]+$"):
        run(package / "unet" / "model.onnx", device=5)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x00" * 64, None])
def test_openvino_rejects_damaged_files_in_one_line(
    package: Path, tmp_path: Path, content: bytes | None
) -> None:
    data = (package / "vae_decoder" / "model.onnx").read_bytes()
    path = tmp_path / "bad" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(data[: len(data) // 2] if content is None else content)
    with pytest.raises(EngineError, match=r"^bad: model\.onnx [^\n]+$"):
        open_session(path, "openvino")


def test_openvino_missing_package_names_the_pip_command(package: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from sdexport.engines import open_session\n"
        f"try: open_session({str(package / 'unet' / 'model.onnx')!r}, 'openvino')\n"
        "except ImportError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sdexport[openvino]'" in found.stdout
