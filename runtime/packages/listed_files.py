"""Which files a manifest must list, and which files a package may hold."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sdexport.engines.errors import PackageError
from sdexport.runtime.models import families
from sdexport.runtime.models.components import FURTHER_GRAPHS, Role
from sdexport.runtime.packages.manifest import MANIFEST, ComponentRecord, Manifest

MODEL_INDEX = "model_index.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
REFERENCE = "reference"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
"""In the folder of a safety checker: how images are brought to its input."""
_LITTER = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
"""Files that file managers write into the folders that they show. Nothing here reads them."""
_HASH = re.compile("[0-9a-f]{64}")


def graph_file(graph: str) -> str:
    """The path of a graph within a package."""
    name, _, further = graph.partition(".")
    return f"{name}/{further or 'model'}.onnx"


def graphs_of(name: str, component: ComponentRecord) -> list[str]:
    """A component, its token graphs, and those that take LoRAs."""
    files = [record.path for record in component.files]
    further = [f"{name}.{graph}" for graph in FURTHER_GRAPHS]
    return [name, *(graph for graph in further if graph_file(graph) in files)]


def check_records(folder: Path, manifest: Manifest) -> None:
    """Check what a manifest lists: paths, hashes, and that nothing that is needed is left out.

    Raises: PackageError: a path that is not in the folder or of no plain form, a hash that is none,
      a file that is listed twice (on a system that ignores case), or one that is missing.
    """
    seen: dict[str, str] = {}
    for record in manifest.every_file:
        _check_path(folder, record.path)
        if not _HASH.fullmatch(record.sha256) or record.size < 0:
            raise PackageError(f"{folder}: {MANIFEST} gives {record.path} no size and SHA-256")
        twin = seen.setdefault(_folded(record.path), record.path)
        if twin is not record.path:
            raise PackageError(
                f"{folder}: {MANIFEST} lists {record.path} twice"
                + (f", also as {twin}" if twin != record.path else "")
            )
    for name, component in manifest.components.items():
        outside = [each.path for each in component.files if not each.path.startswith(f"{name}/")]
        if outside:
            raise PackageError(f"{folder}: {MANIFEST} lists {outside[0]} as a file of {name}")
    listed = {record.path for record in manifest.every_file}
    missing = [path for path in _needed(manifest, listed) if path not in listed]
    if missing:
        raise PackageError(f"{folder}: {MANIFEST} lists no {missing[0]}")


def check_all_listed(folder: Path, manifest: Manifest) -> None:
    """Check that the folders of a package hold nothing that the manifest does not list.

    Links, pipes and folders in them count, whatever they lead to. Further files and folders at the
    top are never read, and may be there; `engines` has checks of its own.

    Raises: PackageError: something is not listed.
    """
    listed = {record.path for record in manifest.every_file}
    for path in _entries(folder):
        if path not in listed:
            raise PackageError(f"{folder}: {path} is not listed in {MANIFEST}")


def is_folder_of_package(name: str) -> bool:
    """Whether files in a folder of this name at the top of a package are read; case is ignored."""
    folded = _folded(name)
    known = {*families.components(), "scheduler", REFERENCE}
    return folded in known or folded.startswith("tokenizer")


def inside(folder: Path, path: str) -> Path:
    """The file at a path within a package. Links are not looked for; open_guarded does that.

    Raises: PackageError: the path leads out of the folder, on this system or another one.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or any(c in path for c in "\\:\0"):
        raise PackageError(f"{folder}: '{path}' points outside of the package")
    return folder / pure


def _check_path(folder: Path, path: str) -> None:
    inside(folder, path)
    pure = PurePosixPath(path)
    # Windows drops dots and spaces at the end of a name
    odd = any(part != part.rstrip(". ") or not part.isprintable() for part in pure.parts)
    if odd or not pure.parts or pure.as_posix() != path:
        raise PackageError(f"{folder}: {MANIFEST} lists {path!r:.100}, which is no plain path")


def _needed(manifest: Manifest, listed: set[str]) -> Iterator[str]:
    """The paths that a manifest must list, given what it does list."""
    if not manifest.is_adapter:
        yield from (MODEL_INDEX, SCHEDULER_CONFIG)
    graphs = [] if manifest.is_adapter else ["image"]
    for spec in families.family_named(manifest.family).components:
        if spec.optional and spec.name not in manifest.components:
            continue
        if spec.role is Role.SAFETY_CHECKER:
            yield f"{spec.name}/{PREPROCESSOR_CONFIG}"
        yield from (f"{spec.name}/model.onnx", f"{spec.name}/config.json")
        if spec.tokenizer and f"{spec.tokenizer}/tokenizer.json" not in listed:
            yield from (f"{spec.tokenizer}/vocab.json", f"{spec.tokenizer}/merges.txt")
        if spec.name in manifest.components:
            graphs += graphs_of(spec.name, manifest.components[spec.name])
    if any(path.startswith(f"{REFERENCE}/") for path in listed):  # all of them, or none
        yield from (f"{REFERENCE}/{name}.npz" for name in graphs)


def _entries(folder: Path) -> Iterator[str]:
    """Paths of what is in the folders that are read; of a folder in them, or a link, its own."""
    for top in _listed(folder):
        if not is_folder_of_package(top.name):
            if _folded(top.name) == MODEL_INDEX:
                yield top.name
            continue
        if not top.is_dir(follow_symlinks=False) or top.name != _folded(top.name):
            yield top.name
            continue
        for entry in _listed(Path(top)):
            is_file = entry.is_file(follow_symlinks=False)
            if not (is_file and entry.name.lower() in _LITTER):
                yield f"{top.name}/{entry.name}"


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _folded(name: str) -> str:
    """A name as a system that ignores case compares it."""
    return unicodedata.normalize("NFC", name).casefold()
