"""Storing the graphs that ONNX Runtime optimises for the next process; as a program, the worker.

That takes longer than an image may wait. So the command line starts this program when its images
are written, with the lowest priority.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sdexport.engines.errors import SDExportError
from sdexport.engines.messages import one_line
from sdexport.engines.worker_process import module_command
from sdexport.runtime.component_engines import open_component
from sdexport.runtime.packages.package import Package

_CACHED = "sdexport.engines.ort.prepared.cached_graph"
"""The module that knows what is missing, if ONNX Runtime was used."""
_LOWEST = 19
"""Of the priorities of POSIX."""
_log = logging.getLogger(__name__)


def store_later(package: Package) -> None:
    """Store the graphs of a package that this process had to optimise, in a process of its own.

    It goes on when this process ends. What goes wrong there is silent: the next process then does
    what this one did.
    """
    cached = sys.modules.get(_CACHED)
    graphs = cached.missing_graphs(package.folder) if cached else []
    if not graphs:
        return
    command, environment = module_command(__name__)
    nothing = subprocess.DEVNULL
    try:
        subprocess.Popen(
            [*command, str(package.folder.absolute()), *graphs],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            env=os.environ | environment,
            start_new_session=True,
        )
    except OSError as error:
        _log.info("optimised graphs are not stored: %s", one_line(error))
    else:
        _log.debug("optimised graphs are stored in the background, for the next start")


def store(folder: Path, graphs: Sequence[str]) -> None:
    """Store graphs of a package.

    Raises: see Package.load and open_component.
    """
    from sdexport.engines.ort.prepared.cached_graph import storing

    package = Package.load(folder)
    with storing():
        for graph in graphs:
            open_component(package, graph, "onnxruntime").close()


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(_LOWEST)
    with suppress(SDExportError, OSError, MemoryError):
        store(Path(sys.argv[1]), sys.argv[2:])
