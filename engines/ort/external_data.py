"""Telling a session of ONNX Runtime where the external data of a graph is that it gets as bytes."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import open_guarded
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.ort.runtime_library import DATA_FOLDER, loading


def give_external_data(name: str, path: Path, options: Any, mapped: ExitStack) -> None:
    """Tell a session that gets a changed copy of a file's model where the external data is.

    Args:
      name: of the component.
      options: of the session.
      mapped: keeps files open until the session is loaded.
    Raises: EngineError: the data cannot be opened.
    """
    with loading(name, path.name):
        locations = survey(path).locations
        is_here = any(os.path.lexists(path.parent / each) for each in locations)
        folder = path.parent.resolve() if is_here else path.resolve().parent
        options.add_session_config_entry(DATA_FOLDER, str(folder))
        _give_linked_data(path, locations, options, mapped)


def _give_linked_data(
    path: Path, locations: Iterable[str], options: Any, mapped: ExitStack
) -> None:
    """Map data files that are links, as in a hub's cache: ONNX Runtime follows none to them."""
    names = [each for each in locations if (path.parent / each).is_symlink()]
    data = []
    for name in names:
        file = mapped.enter_context(open_guarded(path.parent / name, error=EngineError))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.callback(content.close)
        data.append(content)
    if names:
        sizes = [len(content) for content in data]
        options.add_external_initializers_from_files_in_memory(names, data, sizes)
