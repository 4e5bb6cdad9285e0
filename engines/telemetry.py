"""Imports of inference libraries, with the telemetry off that they start by default.

ONNX Runtime sends events unless ORT_DISABLE_TELEMETRY is set before it is imported; a value that
the user set is kept. OpenVINO starts a process that sends events as soon as it is imported; it
goes on without the package openvino_telemetry, which is hidden from it here. A library that the
program imported before sdexport is left as it is.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

_SENDER = "openvino_telemetry"


def import_onnxruntime() -> Any:
    """The module onnxruntime. Raises: ImportError: it is not installed or cannot be loaded."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def import_openvino() -> Any:
    """The module openvino. Raises: ImportError: it is not installed or cannot be loaded."""
    hidden = "openvino" not in sys.modules and _SENDER not in sys.modules
    if hidden:
        sys.modules[_SENDER] = None  # type: ignore[assignment]  # its import fails
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden:
            del sys.modules[_SENDER]
