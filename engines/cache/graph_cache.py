"""Graphs in the user's cache folder that open at once, and the most bytes that they take together.

The least recently used graph is deleted first. Its sidecar's time of change says when it was used.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sdexport.engines.cache.lock import locked
from sdexport.engines.cache.user_cache import folder_problem, user_cache
from sdexport.engines.errors import EngineError
from sdexport.engines.exit_actions import delete as delete_now
from sdexport.engines.messages import shown
from sdexport.engines.temporary_files import TEMPORARY, delete_abandoned_files

OPENVINO, ONNXRUNTIME = "openvino", "onnxruntime"
FOLDERS = (OPENVINO, ONNXRUNTIME)
"""Subfolders: of the graphs that OpenVINO has compiled, and ONNX Runtime optimised."""
SUFFIXES = (".blob", ".onnx")
"""Of a graph's first file, which has the name of its sidecar."""
_STRAY_SUFFIXES = (*SUFFIXES, ".onnx_data")
LIMIT_VARIABLE = "SDEXPORT_CACHE_GB"
"""Environment variable: the most gigabytes that these graphs take."""
DEFAULT_GB = 24.0
"""SD 1.5 in float32 takes 6 GB for one size, SDXL in bfloat16 7 GB."""
FREE_SHARE = 2.0
"""A graph is stored if so many times its weights are free on the disk."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedGraph:
    """One graph: its sidecar, all of its files, their bytes, and when it was used."""

    sidecar: Path
    files: tuple[Path, ...]
    size: int
    used: float

    @property
    def plan(self) -> Path:
        """Its first file, whether it exists or not."""
        plans = [self.sidecar.with_suffix(suffix) for suffix in SUFFIXES]
        return next((plan for plan in plans if plan in self.files), plans[0])


def folder(name: str) -> Path | None:
    """One of FOLDERS in the user's cache; None if there is none to use."""
    return user_cache(name)


def scratch_folder() -> Path | None:
    """Where rewritten weights are put meanwhile: where compiled graphs are, or None."""
    place = folder(OPENVINO)
    return place if place is not None and os.access(place, os.W_OK) else None


def limit() -> int:
    """The most bytes of all graphs together."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    if text:
        with suppress(ValueError, OverflowError):
            if (gigabytes := float(text)) >= 0:
                return int(gigabytes * 1e9)
        _warn_once(f"{LIMIT_VARIABLE} is {shown(text)}, no number; {DEFAULT_GB:g} is used")
    return int(DEFAULT_GB * 1e9)


def no_room(place: Path, weights: int, *, meanwhile: int = 0) -> str:
    """Why a graph with so many bytes of weights is not stored, in words; "" if it is.

    Args:
      meanwhile: bytes of temporary files on the same disk while it is stored.
    Raises: OSError: the disk does not say how much is free.
    """
    need = int(FREE_SHARE * weights)
    if need > limit():
        return f"it may need {need / 1e9:.1f} GB of the cache's {limit() / 1e9:g}"
    need += meanwhile
    free = shutil.disk_usage(place).free
    if need > free:
        return f"{place} has {free / 1e9:.1f} GB free, and it may need {need / 1e9:.1f}"
    if not os.access(place, os.W_OK):
        return f"{place} cannot be written to"
    return ""


def note_use(plan: Path) -> None:
    """Note that a graph was used now, where the folder can be written to."""
    with suppress(OSError):
        os.utime(plan.with_suffix(".json"))
    delete_abandoned(plan.parent)


def delete_abandoned(place: Path) -> None:
    """Delete what killed processes left: gigabytes that no graph would ever use."""
    delete_abandoned_files(place)
    parts = _temporary_folders(place, "*")
    stems = {part.name[1:].removesuffix(TEMPORARY).rpartition(".")[0] for part in parts}
    for stem in stems | {file.stem for file in place.glob("*.lock")}:
        # a process that writes the graph holds the lock
        with suppress(EngineError, OSError), locked(place / f"{stem}.lock", stem):
            for part in _temporary_folders(place, f"{stem}.*"):
                delete_now(part)


def _temporary_folders(place: Path, names: str) -> list[Path]:
    """Folders in which graphs are written, and no files: those have locks of their own."""
    found = place.glob(f".{names}{TEMPORARY}")
    return [each for each in found if each.is_dir() and not each.is_symlink()]


def _delete_strays(place: Path) -> None:
    """Delete graph files without a sidecar, which is written last and deleted first."""
    for file in [each for each in stray_files(place) if each.suffix in _STRAY_SUFFIXES]:
        stem = file.name.removesuffix(file.suffix)
        # the second file of a graph has one more part in its name than the sidecar
        stems = sorted({stem, stem.rpartition(".")[0] or stem})
        with suppress(EngineError, OSError), ExitStack() as stack:
            for each in stems:
                stack.enter_context(locked(place / f"{each}.lock", each))
            if not any(os.path.lexists(place / f"{each}.json") for each in stems):
                delete_now(file)


def graphs(place: Path) -> list[CachedGraph]:
    """The graphs of a folder, the least recently used one first."""
    found = []
    for sidecar in place.glob("*.json"):
        stem = f"{sidecar.stem}."
        with suppress(OSError):  # another process deletes it
            files = [f for f in place.iterdir() if f.name.startswith(stem) and f != sidecar]
            size = sum(file.lstat().st_size for file in (*files, sidecar))
            found.append(CachedGraph(sidecar, tuple(files), size, sidecar.lstat().st_mtime))
    return sorted(found, key=lambda graph: graph.used)


def evict(place: Path, *, keep: Path | None = None, most: int | None = None) -> int:
    """Delete the least recently used graphs until the others take `most` bytes, and stray files.

    Args:
      place: one of FOLDERS; graphs of the others next to it are counted and deleted too.
      keep: the file of a graph that stays. most: default `limit()`.
    Returns: how many were deleted.
    """
    others = [place.with_name(name) for name in FOLDERS if name != place.name]
    places = [each for each in (place, *others) if not folder_problem(each)]
    for each in places:
        delete_abandoned(each)
        _delete_strays(each)
    found = [graph for each in places for graph in graphs(each)]
    present, deleted = sorted(found, key=lambda graph: graph.used), 0
    total, most = sum(graph.size for graph in present), limit() if most is None else most
    for graph in present:
        if total <= most:
            break
        if keep is None or keep not in graph.files:
            delete(graph)
            total, deleted = total - graph.size, deleted + 1
    return deleted


def delete(graph: CachedGraph) -> None:
    """Delete a graph, its sidecar first: what is left cannot be opened."""
    for file in (graph.sidecar, *graph.files):
        with suppress(OSError):  # on Windows, a file that is open stays
            file.unlink(missing_ok=True)


def stray_files(place: Path) -> list[Path]:
    """Files that belong to no graph: what a killed process left."""
    known = {file for graph in graphs(place) for file in (graph.sidecar, *graph.files)}
    return [file for file in place.iterdir() if file not in known]


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
