"""The files of a package: opened, measured and hashed as the manifest lists them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path

from sdexport.engines.cache.hash_check import HashCheck
from sdexport.engines.errors import PackageError
from sdexport.engines.guarded_files import FileIdentity, open_guarded
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.listed_files import (
    MODEL_INDEX,
    SCHEDULER_CONFIG,
    check_all_listed,
    check_records,
    graphs_of,
    inside,
)
from sdexport.runtime.packages.manifest import MANIFEST, FileRecord, Manifest


def check_listed(
    folder: Path, manifest: Manifest, verify: bool, wait: bool, on_bytes: Callable[[int], object]
) -> tuple[dict[Path, FileIdentity], HashCheck | None]:
    """The identity of every file that the manifest lists, after checking that those are all.

    Args:
      verify: check the hashes too. wait: also until those of large weight files are compared.
      on_bytes: called with the size of each file that was checked.
    Raises: PackageError: a file is missing, altered or not listed.
    """
    check_records(folder, manifest)
    identities: dict[Path, FileIdentity] = {}
    opened = opened_records(folder, manifest.every_file, identities)
    if not verify:
        for _, file, _ in opened:
            on_bytes(os.fstat(file.fileno()).st_size)
            file.close()
        check_all_listed(folder, manifest)
        return identities, None
    hashes = HashCheck(opened, partial(altered, folder), what=str(folder))
    others = [path for path in identities if not _is_weights(path)]
    hashes.wait(None if wait else others, on_bytes=on_bytes)
    check_all_listed(folder, manifest)
    return identities, hashes


def opened_records(
    folder: Path, records: Iterable[FileRecord], identities: dict[Path, FileIdentity]
) -> Iterator[tuple[Path, BufferedReader, str]]:
    """Open files whose sizes are those of their records.

    Args:
      identities: gets that of each file.
    Returns: path, open file and expected hash of each, as HashCheck takes them.
    Raises: PackageError: a file is missing, or has another size.
    """
    for record in records:
        path = folder / record.path
        file = _open_listed(folder, path)
        try:
            identities[path] = _checked_size(folder, record, file)
        except PackageError:
            file.close()
            raise
        yield path, file, record.sha256


def _is_weights(path: Path) -> bool:
    """Whether a file holds numbers only, so that a library may map it before it is compared."""
    return path.suffix not in (".onnx", ".json", ".txt", ".npz")


def altered(folder: Path, path: Path) -> PackageError:
    """The error for a file whose hash is another one."""
    name = path.relative_to(folder).as_posix()
    return PackageError(f"{folder}: {name} was altered: its SHA-256 does not match")


def _checked_size(folder: Path, record: FileRecord, file: BufferedReader) -> FileIdentity:
    """The identity of a file that has the size of its record."""
    identity = FileIdentity.of(os.fstat(file.fileno()))
    if identity.size != record.size:
        raise PackageError(
            f"{folder}: {record.path} is truncated or altered: {identity.size} bytes, "
            f"not {record.size}"
        )
    return identity


def file_identity(folder: Path, path: Path) -> FileIdentity:
    """The identity of a file of the package.

    Raises: PackageError: it is missing.
    """
    with _open_listed(folder, path) as file:
        return FileIdentity.of(os.fstat(file.fileno()))


def _open_listed(folder: Path, path: Path) -> BufferedReader:
    """A file of the package; PackageError if it is missing."""
    try:
        return open_guarded(path, error=PackageError, folder=folder)
    except FileNotFoundError:
        missing = path.relative_to(folder).as_posix()
        raise PackageError(f"{folder} is incomplete: {missing} is missing") from None


def files_opened(manifest: Manifest, surveys: GraphSurveys) -> list[Path]:
    """Every file that may be opened once a package is loaded."""
    folder, opened = surveys.folder, list[Path]()
    for name, component in manifest.components.items():
        graphs = graphs_of(name, component)
        opened += map(surveys.path, graphs)
        weights = {each for graph in graphs for each in surveys.of(graph).locations}
        opened += (inside(folder, f"{name}/{each}") for each in sorted(weights))
    if not manifest.is_adapter:
        opened.append(folder / SCHEDULER_CONFIG)
    for pattern in (MODEL_INDEX, "tokenizer*/*", "*/config.json", "reference/*.npz"):
        opened += (path for path in folder.glob(pattern) if not path.is_dir())
    return opened


def check_opened(folder: Path, manifest: Manifest, opened: list[Path]) -> None:
    """Check that every file that is opened is listed with its hash.

    Raises: PackageError: one is not, or is missing.
    """
    listed = {record.path for record in manifest.every_file}
    for path in opened:
        name = path.relative_to(folder).as_posix()
        if name not in listed:
            if not path.exists():
                raise PackageError(f"{folder} is incomplete: {name} is missing")
            raise PackageError(f"{folder}: {name} is not listed in {MANIFEST}")
