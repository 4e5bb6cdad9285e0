"""A graph of any precision in ONNX Runtime, computed in float32 from its weights as stored."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles
from sdexport.engines.onnx_file.float32_graph import in_float32
from sdexport.engines.ort.external_data import give_external_data
from sdexport.engines.ort.onnxruntime_session import OnnxRuntimeBase
from sdexport.engines.ort.runtime_library import (
    CPU,
    loading,
    ort,
    session_options,
    tensor_specs,
)
from sdexport.engines.session import Session


def open_float32(path: str | Path, *, files: CheckedFiles = UNCHECKED) -> Session:
    """Open an ONNX graph so that its outputs depend on its weights and nodes alone.

    Nothing is optimised, and no product is computed in less than float32: two processors agree to
    about 1e-6. It needs less memory than an ordinary session, and more time for each call.

    Args:
      path: the .onnx file; its external data is in the same folder.
      files: those that are opened; their identity is compared before and after that.
    Raises: FileNotFoundError: no such file. EngineError: it cannot be loaded. PackageError: the
      files changed. MissingDependencyError: ONNX Runtime is not installed.
    """
    path = Path(path)
    name = path.parent.name or path.stem
    options = session_options(None, "none", prepacking=False)
    with files.unchanged(), ExitStack() as mapped:
        model = in_float32(path)
        give_external_data(name, path, options, mapped)
        with loading(name, f"{path.name} in float32"):
            session = ort.InferenceSession(model, options, providers=list(CPU))
    specs = map(tensor_specs, (session.get_inputs(), session.get_outputs()))
    return OnnxRuntimeBase(session, name, *specs)
