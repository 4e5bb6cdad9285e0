"""Every way to open the embedded UNet as a session on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines import Session, open_session

OPENERS = [
    "onnxruntime",
    "openvino",
    "torch",
    pytest.param("onnxruntime-cuda", marks=pytest.mark.gpu),
]


def open_unet(request: pytest.FixtureRequest, opener: str) -> Session:
    """The embedded UNet behind `opener`; skips where its package is not installed."""
    if opener == "torch":
        return _torch(request)
    package: Path = request.getfixturevalue("package")
    model = package / "unet" / "model.onnx"
    if opener == "onnxruntime-cuda":
        return open_session(model, opener)
    pytest.importorskip(opener)
    return open_session(model, opener)


def _torch(request: pytest.FixtureRequest) -> Session:
    pytest.importorskip("torch")
    from sdexport.checkpoint import Checkpoint
    from sdexport.components import parts
    from sdexport.reference import TorchSession
    from sdexport.shapes import MODEL_DIR

    configs = Checkpoint.open(MODEL_DIR).configs
    unet = parts(configs)[1]
    modules: dict[str, Any] = request.getfixturevalue("modules")
    return TorchSession(unet, modules["unet"])
