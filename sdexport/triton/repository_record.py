"""What a model repository holds: sdexport-triton.json at its top, and next to the pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from sdexport.engines.errors import PackageError
from sdexport.engines.files import read_json
from sdexport.engines.guarded_files import parsing
from sdexport.engines.messages import shown
from sdexport.engines.session import TensorSpec
from sdexport.runtime.packages.manifest import FileRecord
from sdexport.runtime.version import __version__

RECORD = "sdexport-triton.json"
FORMAT_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?")
"""Names of models and folders, which are the same on every system."""


@dataclass(frozen=True)
class ModelRecord:
    """A model of the repository that runs a graph; see GraphModel.

    files: paths relative to the repository.
    """

    graph: str
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    files: tuple[FileRecord, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises: KeyError, TypeError, ValueError: not the shape of a record."""
        return cls(
            str(data["graph"]),
            _folder(data["name"]),
            tuple(map(TensorSpec.from_json, data["inputs"])),
            tuple(map(TensorSpec.from_json, data["outputs"])),
            int(data["max_batch_size"]),
            tuple(map(_file, data["files"])),
        )


def _folder(name: Any) -> str:
    """The name of a folder itself.

    Raises: ValueError: it is none, or leads elsewhere.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{shown(name)} is no name of a folder")
    return name


def _file(data: Mapping[str, Any]) -> FileRecord:
    return FileRecord(str(data["path"]), int(data["size"]), str(data["sha256"]))


@dataclass(frozen=True)
class RepositoryRecord:
    """The content of sdexport-triton.json.

    name: of the pipeline's model. package: of the folder next to it with the package's small files;
    images name it as their model. digest: of the package's manifest. sdexport: the version that
    wrote the repository. max_batch, max_pixels, max_steps: limits of the pipeline's model.
    """

    name: str
    package: str
    digest: str
    max_batch: int
    max_pixels: int
    max_steps: int
    models: tuple[ModelRecord, ...]
    sdexport: str = __version__
    format_version: int = FORMAT_VERSION

    @property
    def size(self) -> int:
        """Bytes of the graphs."""
        return sum(file.size for model in self.models for file in model.files)

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises: PackageError: it is damaged, or of another format version. FileNotFoundError.
        """
        data = read_json(path, PackageError, strict=True)
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise PackageError(
                f"{path}: format_version {shown(version)} is unknown to this sdexport, which reads "
                f"{FORMAT_VERSION}; write the repository again with the version that serves it"
            )
        with parsing(PackageError, path):
            return cls(
                name=_folder(data["name"]),
                package=_folder(data["package"]),
                digest=str(data["digest"]),
                max_batch=int(data["max_batch"]),
                max_pixels=int(data["max_pixels"]),
                max_steps=int(data["max_steps"]),
                models=tuple(map(ModelRecord.from_dict, data["models"])),
                sdexport=str(data["sdexport"]),
            )
