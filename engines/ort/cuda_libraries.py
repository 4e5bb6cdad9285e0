"""CUDA's and cuDNN's libraries, as ONNX Runtime needs them on an NVIDIA GPU.

They come with wheels of their own, which `sdexport[gpu]` brings, or from the system.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import sys
from pathlib import PurePath

from sdexport.engines.telemetry import import_onnxruntime

CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"
"""ONNX Runtime loads this one only when a convolution needs it."""
INSTALL = "run: pip install 'sdexport[gpu]'"


@functools.cache
def missing_libraries() -> str:
    """Load the libraries into this process, once.

    Returns: which of them cannot be loaded and what to do, in words; "" if all can.
    """
    onnxruntime = import_onnxruntime()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # it prints what fails, and raises nothing
        onnxruntime.preload_dlls()
    failed = re.findall(r"^Failed to load (.+?): ", printed.getvalue(), re.MULTILINE)
    names = [PurePath(path.replace("\\", "/")).name for path in failed]
    try:
        ctypes.CDLL(CUDNN)
    except OSError:
        names.append(CUDNN)
    if not names:
        return ""
    return f"{', '.join(dict.fromkeys(names))} cannot be loaded; {INSTALL}"
