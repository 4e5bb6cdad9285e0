"""Opening sessions: options, and files and options that are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.engines import EngineError, open_session
from tests.helpers.unet_sessions import feeds
from tests.tolerances import SESSION_OPTIONS_ABS


def test_open_session_unknown_backend_lists_choices(package: Path) -> None:
    with pytest.raises(ValueError, match="unknown backend 'abacus'; choose one of onnxruntime"):
        open_session(package / "unet" / "model.onnx", "abacus")


def test_open_session_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model file"):
        open_session(tmp_path / "model.onnx")


def test_onnxruntime_rejects_damaged_files(package: Path, tmp_path: Path) -> None:
    data = (package / "vae_decoder" / "model.onnx").read_bytes()
    for name, content in {"half": data[: len(data) // 2], "text": b"<html>404</html>"}.items():
        path = tmp_path / name / "model.onnx"
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(EngineError, match=f"{name}: ONNX Runtime cannot load model.onnx"):
            open_session(path)


def test_onnxruntime_rejects_absent_providers(package: Path) -> None:
    with pytest.raises(EngineError, match="has no NoExecutionProvider here; it has"):
        open_session(package / "unet" / "model.onnx", providers=["NoExecutionProvider"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization": "most"}, "optimization must be one of none, basic, extended, all"),
        ({"threads": 0}, "threads must be a whole number from 1 to 4096, got 0"),
        ({"threads": 1.5}, "threads must be"),
    ],
)
def test_onnxruntime_rejects_options(package: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_session(package / "unet" / "model.onnx", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"optimization": "none", "threads": 1},
        {"prepacking": False},
        {"providers": [("CPUExecutionProvider", {"use_arena": "0"})]},
    ],
)
def test_onnxruntime_options_do_not_change_the_outputs(
    package: Path, options: dict[str, Any]
) -> None:
    model = package / "unet" / "model.onnx"
    with open_session(model) as plain, open_session(model, **options) as session:
        expected = plain.run(feeds())["out_sample"]
        np.testing.assert_allclose(
            session.run(feeds())["out_sample"], expected, rtol=0, atol=SESSION_OPTIONS_ABS
        )


def test_onnxruntime_without_cuda_names_the_pip_command(package: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(EngineError, match=r"has no CUDAExecutionProvider .* 'sdexport\[gpu\]'"):
        open_session(package / "unet" / "model.onnx", providers=["CUDAExecutionProvider"])
