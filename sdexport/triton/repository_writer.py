"""Writing a package as a model repository for Triton: it appears complete, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.files import write_atomically
from sdexport.engines.guarded_files import MIB, FileIdentity, open_guarded
from sdexport.engines.messages import shown
from sdexport.package_folder import check_destination, package_folder
from sdexport.runtime import checks
from sdexport.runtime.packages.listed_files import inside
from sdexport.runtime.packages.manifest import MANIFEST, FileRecord
from sdexport.runtime.packages.package import Package
from sdexport.runtime.version import __version__
from sdexport.server.server_settings import ServerSettings
from sdexport.triton.graph_models import GraphModel, graph_models, model_files
from sdexport.triton.model_config import KINDS
from sdexport.triton.pipeline_tensors import pipeline_config
from sdexport.triton.repository_record import NAME, RECORD, ModelRecord, RepositoryRecord
from sdexport.triton.served_package import served_files

VERSION = "1"
"""The folder of a model's only version."""
CONFIG = "config.pbtxt"
MODEL = "model.py"
_LONGEST = 64
"""Characters of the name of the pipeline's model."""
_RESERVED = (MODEL, RECORD, "__pycache__")
"""Names that other files next to the pipeline have."""
_MODEL_PY = '''"""The pipeline, for Triton's Python backend. Written by sdexport {version}."""

from pathlib import Path

from sdexport.triton.pipeline_model import PipelineModel


class TritonPythonModel(PipelineModel):
    """Generates images; see config.pbtxt for its inputs and outputs."""

    folder = Path(__file__).parent
'''


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """How a repository is written.

    name: of the pipeline's model, and what names of the others begin with; None takes that of the
    package's folder. max_batch: images that are generated together at most, and rows of a batch of
    a graph that Triton batches. queue_delay: microseconds for which a request to the pipeline waits
    for others, if max_batch is more than 1. instances: of each graph. pipelines: of the pipeline,
    each a process. kind: "cpu" or "gpu", where the graphs run. adapter_graphs: also write graphs
    that take inputs of adapters. copy: copy all files, instead of hard links where they are
    possible. max_pixels, max_steps: of an image.
    """

    name: str | None = None
    max_batch: int = 4
    queue_delay: int = 20_000
    instances: int = 1
    pipelines: int = 1
    kind: str = "gpu"
    adapter_graphs: bool = False
    copy: bool = False
    max_pixels: int = ServerSettings.max_pixels
    max_steps: int = ServerSettings.max_steps

    def __post_init__(self) -> None:
        """Raises: InvalidArgumentError: a value out of range."""
        if self.name is not None and not _names_a_model(self.name):
            raise InvalidArgumentError(
                f"name: {shown(self.name)} cannot name a model; use up to 64 ASCII letters, "
                "digits, '_', '-' and '.'"
            )
        checks.integer("max_batch", self.max_batch, 1, 1024)
        checks.integer("queue_delay", self.queue_delay, 0, 60_000_000)
        checks.integer("instances", self.instances, 1, 1024)
        checks.integer("pipelines", self.pipelines, 1, 1024)
        checks.integer("max_pixels", self.max_pixels, 1, 2**28)
        checks.integer("max_steps", self.max_steps, 1, 1000)
        if self.kind not in KINDS:
            raise InvalidArgumentError(f"kind must be cpu or gpu, got {shown(self.kind)}")


def write_repository(
    package: str | Path,
    repository: str | Path,
    *,
    options: RepositoryOptions | None = None,
    force: bool = False,
    on_file: Callable[[str], object] = lambda path: None,
    **trust: object,
) -> RepositoryRecord:
    """Write a package as a model repository for Triton.

    Every file is compared with its hash first, and what is linked or copied is what was compared.

    Args:
      repository: the folder to create; with `force` one that was written before is replaced.
      on_file: called with the path of each file before it is written.
      trust: further arguments of Package.load: verify_hashes, trusted_key, trust.
    Raises: FileNotFoundError, PackageError: see Package.load; a package without a manifest, or one
      that ONNX Runtime cannot run. InvalidArgumentError: the package of an adapter, or an option
      out of range. FileExistsError, PermissionError: see check_destination.
    """
    options = options or RepositoryOptions()
    source, destination = Path(package), Path(repository)
    _check_source(source, destination)
    check_destination(destination, force=force, mark=RECORD)
    _check_replaced(destination)
    opened = Package.load(source, **trust)  # type: ignore[arg-type]
    _check_kind(opened)
    name = options.name or _folder_name(source)
    if name is None:
        raise InvalidArgumentError(
            f"{source}: the folder's name cannot name a model; give one with --name"
        )
    models = graph_models(
        opened, name, max_batch=options.max_batch, adapter_graphs=options.adapter_graphs
    )
    with package_folder(destination, force=force, mark=RECORD) as folder:
        writer = _Writer(opened, folder, options, on_file)
        records = [writer.graph(model) for model in models]
        record = RepositoryRecord(
            name=name,
            package=_small_folder(source),
            digest=str(opened.digest),
            max_batch=options.max_batch,
            max_pixels=options.max_pixels,
            max_steps=options.max_steps,
            models=tuple(records),
        )
        writer.pipeline(record)
        opened.files.check()
        write_atomically(folder / RECORD, record.to_json())
    return record


def _check_source(source: Path, destination: Path) -> None:
    """Raises: PackageError: no manifest. InvalidArgumentError: the one folder is in the other."""
    if source.is_dir() and not os.path.lexists(source / MANIFEST):
        raise PackageError(
            f"{source} has no {MANIFEST}, so nothing in it can be checked; a repository is written "
            "from a package of 'sdexport export'"
        )
    inner, outer = Path(os.path.realpath(source)), Path(os.path.realpath(destination))
    if inner.is_relative_to(outer):
        raise InvalidArgumentError(f"{destination}: the package is in this folder; choose another")


def _check_replaced(destination: Path) -> None:
    """Check that nothing but models of sdexport is replaced.

    Raises: FileExistsError: the folder holds something else. PackageError: its record is damaged.
    """
    if not (destination / RECORD).is_file():
        return
    record = RepositoryRecord.read(destination / RECORD)
    known = {RECORD, record.name, *(model.name for model in record.models)}
    others = sorted(entry.name for entry in destination.iterdir() if entry.name not in known)
    for name in sorted(known - {RECORD}):
        if (destination / name).is_dir():
            entries = {entry.name for entry in (destination / name).iterdir()}
            others += [f"{name}/{each}" for each in sorted(entries - {CONFIG, VERSION})]
    if others:
        raise FileExistsError(
            f"{destination} holds {shown(others[0])}, which sdexport did not write; "
            "it is not replaced"
        )


def _check_kind(package: Package) -> None:
    """Raises: InvalidArgumentError: an adapter. PackageError: ONNX Runtime cannot run it."""
    manifest = package.manifest
    if manifest.is_adapter:
        raise InvalidArgumentError(
            f"{package.folder} is the package of a {manifest.family}, not of a model; Triton's "
            "pipeline takes no adapters"
        )
    for name, component in manifest.components.items():
        if component.precision == "bf16":
            raise PackageError(
                f"{package.folder}: {name} is in bf16, for which Triton's ONNX Runtime has no "
                "kernels of all operators; export it in another precision"
            )


def _folder_name(source: Path) -> str | None:
    """The name of the package's folder, if it can be that of a model or folder on any system."""
    name = Path(os.path.realpath(source)).name
    return name if _names_a_model(name) else None


def _names_a_model(name: str) -> bool:
    """Whether a model may have this name, and further ones one that begins so."""
    return len(name) <= _LONGEST and NAME.fullmatch(name) is not None


def _small_folder(source: Path) -> str:
    """The name of the folder next to the pipeline with the package's small files."""
    name = _folder_name(source)
    return "package" if name is None or name.casefold() in _RESERVED else name


class _Writer:
    """Writes the models of a repository.

    Args:
      folder: becomes the repository.
    """

    def __init__(
        self,
        package: Package,
        folder: Path,
        options: RepositoryOptions,
        on_file: Callable[[str], object],
    ) -> None:
        self._package, self._folder, self._options = package, folder, options
        self._on_file = on_file
        self._records = {record.path: record for record in package.manifest.every_file}
        self._written: dict[Path, Path] = {}

    def graph(self, model: GraphModel) -> ModelRecord:
        """Write the model of a graph."""
        config = model.config(instances=self._options.instances, kind=self._options.kind)
        self._text(f"{model.name}/{CONFIG}", config.text())
        files = model_files(self._package, model.graph)
        records = [
            self._file(f"{model.name}/{VERSION}/{name}", path) for name, path in files.items()
        ]
        return ModelRecord(
            model.graph,
            model.name,
            model.inputs,
            model.outputs,
            model.max_batch_size,
            tuple(records),
        )

    def pipeline(self, record: RepositoryRecord) -> None:
        """Write the model of the pipeline, and the files of the package that it needs."""
        options = self._options
        config = pipeline_config(
            record.name,
            max_batch=options.max_batch,
            queue_delay=options.queue_delay,
            instances=options.pipelines,
        )
        self._text(f"{record.name}/{CONFIG}", config.text())
        version = f"{record.name}/{VERSION}"
        small = f"{version}/{record.package}"
        for each in served_files(self._package.manifest):
            self._file(f"{small}/{each.path}", self._package.folder / each.path)
        manifest = self._package.manifest.to_json()
        self._text(f"{small}/{MANIFEST}", manifest)
        self._text(f"{version}/{RECORD}", record.to_json())
        self._text(f"{version}/{MODEL}", _MODEL_PY.format(version=__version__))

    def _text(self, path: str, content: str) -> None:
        self._on_file(path)
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode())

    def _file(self, path: str, source: Path) -> FileRecord:
        """Link or copy a file of the package.

        Returns: its record, with its path in the repository.
        Raises: PackageError: it changed since it was checked.
        """
        self._on_file(path)
        record = self._records[source.relative_to(self._package.folder).as_posix()]
        target = inside(self._folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        before = self._written.get(source)
        if before is not None and _link(before, target):  # weights that several graphs share
            return FileRecord(path, record.size, record.sha256)
        with self._package.files.of([source]).unchanged():
            if self._options.copy or not _linked(source, target):
                _copy(source, target, self._package.folder, record.sha256)
        self._written[source] = target
        return FileRecord(path, record.size, record.sha256)


def _linked(source: Path, target: Path) -> bool:
    """Whether a hard link to exactly this file was made; the caller compares its identity."""
    real = Path(os.path.realpath(source))  # the file itself, if a hub's cache links to it
    if not _link(real, target):
        return False
    if FileIdentity.of(target.lstat()) == FileIdentity.of(source.stat()):
        return True
    target.unlink()
    return False


def _link(source: Path, target: Path) -> bool:
    """Make a hard link. Returns: False if that is not possible here."""
    try:
        os.link(source, target)
    except (OSError, NotImplementedError):
        return False
    return True


def _copy(source: Path, target: Path, folder: Path, sha256: str) -> None:
    """Copy a file of the package, and compare what was copied with its hash.

    Raises: PackageError: it was altered.
    """
    digest = hashlib.sha256()
    with (
        open_guarded(source, error=PackageError, folder=folder) as file,
        target.open("xb") as copy,
    ):
        while block := file.read(4 * MIB):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != sha256:
        name = PurePosixPath(source.relative_to(folder))
        raise PackageError(f"{folder}: {name} was altered: its SHA-256 does not match")
    shutil.copymode(source, target)
