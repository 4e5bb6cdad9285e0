"""A graph of any precision in ONNX Runtime, computed in float32 from its weights as stored."""

from __future__ import annotations

import mmap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles, open_guarded
from sdexport.engines.onnx_file.float32_graph import in_float32
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.ort.onnxruntime_session import OnnxRuntimeBase
from sdexport.engines.ort.runtime_library import (
    CPU,
    DATA_FOLDER,
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


def give_external_data(name: str, path: Path, options: Any, mapped: ExitStack) -> None:
    """Tell a session that gets a changed copy of a file's model where the external data is.

    Args:
      name: of the component.
      options: of the session.
      mapped: keeps files open until the session is loaded.
    Raises: EngineError: the data cannot be opened.
    """
    options.add_session_config_entry(DATA_FOLDER, str(path.resolve().parent))
    with loading(name, path.name):
        _give_linked_data(path, options, mapped)


def _give_linked_data(path: Path, options: Any, mapped: ExitStack) -> None:
    """Map data files that are links, as in a hub's cache: ONNX Runtime follows none to them."""
    names = [each for each in survey(path).locations if (path.parent / each).is_symlink()]
    data = []
    for name in names:
        file = mapped.enter_context(open_guarded(path.parent / name, error=EngineError))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.callback(content.close)
        data.append(content)
    if names:
        sizes = [len(content) for content in data]
        options.add_external_initializers_from_files_in_memory(names, data, sizes)
