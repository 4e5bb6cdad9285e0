"""Shared code of the other libraries' workers; needs NumPy and the standard library only.

A worker speaks the protocol of engines/worker_process.py with the requests of bench_worker.py:
open, component, image. Two of them also prepare a checkpoint for their library: `python WORKER
prepare CHECKPOINT FOLDER`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from sdexport.engines.process_memory import resident_mb
from sdexport.engines.worker_process import serve

Feeds = dict[str, np.ndarray]


def loaded(path: str) -> Feeds:
    with np.load(path, allow_pickle=False) as data:
        return dict(data)


def opened(components: list[str], *packages: str) -> dict[str, Any]:
    """The response to `open`."""
    versions = {name: metadata.version(name) for name in packages}
    return {"components": {n: {} for n in components}, "versions": versions, **resident_mb()}


def run(worker: Any, prepare: Callable[[Path, Path], object] | None = None) -> None:
    """Prepare a checkpoint if the command line says so, else serve requests."""
    if prepare is not None and sys.argv[1:2] == ["prepare"]:
        prepare(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    serve({name: getattr(worker, name) for name in ("open", "component", "image")})
