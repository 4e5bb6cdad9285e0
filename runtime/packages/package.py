"""Reading and checking a package: the folder that an export writes.

A folder that Optimum exported (without sdexport.json) loads too; it carries no hashes to check.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from sdexport.engines.cache.hash_check import HashCheck
from sdexport.engines.cache.remembered_hashes import nothing_remembered
from sdexport.engines.cache.sidecar import combined_digest, model_digest
from sdexport.engines.errors import PackageError
from sdexport.engines.guarded_files import UNCHECKED, CheckedFiles, parsing
from sdexport.engines.onnx_file.graph_specs import specs_of
from sdexport.engines.session import TensorSpec
from sdexport.runtime.models.components import UNET, needed_by
from sdexport.runtime.models.families import family_named
from sdexport.runtime.models.family import ModelFamily
from sdexport.runtime.packages.agreement import check_agreement
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.listed_files import (
    MODEL_INDEX,
    SCHEDULER_CONFIG,
    graph_file,
    graphs_of,
)
from sdexport.runtime.packages.manifest import (
    MANIFEST,
    Manifest,
    read_json,
    read_manifest,
)
from sdexport.runtime.packages.minisign import Signature
from sdexport.runtime.packages.missing_manifest import check_never_had_one
from sdexport.runtime.packages.optimum import manifest_of_optimum
from sdexport.runtime.packages.package_files import (
    check_listed,
    check_opened,
    file_identity,
    files_opened,
)
from sdexport.runtime.packages.signature import TrustedKey
from sdexport.runtime.packages.trust import UNTRUSTED, WARN, Trust
from sdexport.runtime.packages.unfinished import check_finished
from sdexport.runtime.text.tokenizer import ClipTokenizer

logger = logging.getLogger(__name__)

_TRIES = 20
"""Loads of a package that another process replaces each time."""


@dataclass(frozen=True)
class Package:
    """A package on disk whose files were checked; made by `Package.load`.

    scheduler_config, model_index: the JSON objects of those files.
    files: the identity of each file when it was checked; whatever is opened later must still be
      that file.
    hashes: compares the hash of every file with the manifest's; None if nothing does.
    reads_every_hash: whether remembered hashes are not used, also of engines.
    signature: what was verified with the key that was required; None if none was.
    trust: what was required; see Trust.built_engines.
    surveys: what the graphs consist of, as they were when they were checked.

    Example:
        >>> from sdexport import Package
        >>> package = Package.load("package")
        >>> package.manifest.family, package.manifest.default_size
        ('stable-diffusion', (128, 128))
    """

    folder: Path
    manifest: Manifest
    scheduler_config: Mapping[str, Any] = field(repr=False)
    model_index: Mapping[str, Any] = field(default_factory=dict, repr=False)
    files: CheckedFiles = field(default=UNCHECKED, repr=False, compare=False)
    hashes: HashCheck | None = field(default=None, repr=False, compare=False)
    signature: Signature | None = None
    trust: Trust = field(default=UNTRUSTED, repr=False)
    surveys: GraphSurveys = field(repr=False, compare=False, kw_only=True)
    reads_every_hash: bool = field(default=False, repr=False, compare=False, kw_only=True)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        verify: bool = True,
        verify_hashes: bool = False,
        trusted_key: TrustedKey | None = None,
        trust: str = WARN,
        wait: bool = True,
        on_bytes: Callable[[int], object] = lambda size: None,
    ) -> Self:
        """Read a package and check it: paths, sizes, and with `verify` the hash of every file.

        Of a large file that an earlier process has read, and that has not changed since, the hash
        is remembered; see docs/start-and-memory.md.

        Args:
          verify_hashes: read every file, also if its hash is remembered. `trusted_key` and
            "signed" do that too.
          trusted_key: the package must be signed with this key: a public key of minisign, its file
            or its base64. Engines in the package's own folder are not used then: no signature
            covers them.
          trust: what happens to graphs with unknown operators, which `trusted_key` did not sign:
            "warn", or "signed" to reject them, and to use no engines in the package's own folder.
          wait: False returns while large weight files are still being read, unless a signature is
            required; `check_hashes` waits for them.
          on_bytes: called with the size of each file that was checked, for a progress bar.
        Raises: FileNotFoundError: no such folder. InvalidArgumentError: no public key, or one
          without `verify`. PackageError: not a package, not signed, or one of another
          format version, or one that is unfinished, incomplete, altered, or points outside of its
          folder.
        """
        folder = Path(folder)
        required = Trust.checked(trust, trusted_key, verify=verify)
        for _ in range(_TRIES):
            before = _folder_identity(folder)
            try:
                every = verify_hashes or not required.built_engines
                with nothing_remembered(every):
                    package = cls._load(folder, verify, required, wait, on_bytes)
                package = replace(package, reads_every_hash=every)
            except (PackageError, FileNotFoundError):
                if _folder_identity(folder) == before:
                    raise
            else:
                if _folder_identity(folder) == before:
                    return package
        raise PackageError(f"{folder}: the package changes on disk all the time; load it again")

    @classmethod
    def _load(
        cls,
        folder: Path,
        verify: bool,
        required: Trust,
        wait: bool,
        on_bytes: Callable[[int], object],
    ) -> Self:
        """`load`, for a folder that may be replaced by another one in the meantime."""
        if not folder.is_dir():
            raise FileNotFoundError(f"no package at {folder}: there is no such folder")
        check_finished(folder)
        has_manifest, surveys = os.path.lexists(folder / MANIFEST), GraphSurveys(folder)
        hashes: HashCheck | None = None
        if has_manifest:
            manifest = read_manifest(folder)
            signature = required.signature(folder, manifest)
            waits = wait or not required.built_engines
            identities, hashes = check_listed(folder, manifest, verify, waits, on_bytes)
        elif (folder / UNET.name / "model.onnx").is_file():
            signature = required.signature(folder, None)
            check_never_had_one(folder, surveys)
            manifest = manifest_of_optimum(folder)
        else:
            raise PackageError(
                f"{folder} is not a package: it has no {MANIFEST}; make one with 'sdexport export'"
            )
        opened = files_opened(manifest, surveys)
        if has_manifest:
            check_opened(folder, manifest, opened)
        else:
            identities = {path: file_identity(folder, path) for path in opened}
        files = CheckedFiles(identities)
        has_index = (folder / MODEL_INDEX).is_file()
        with files.unchanged():
            model_index = read_json(folder, MODEL_INDEX) if has_index else {}
            is_adapter = manifest.is_adapter
            scheduler_config = {} if is_adapter else read_json(folder, SCHEDULER_CONFIG)
        package = cls(
            folder,
            manifest,
            scheduler_config,
            model_index,
            files,
            hashes,
            signature,
            required,
            surveys=surveys,
        )
        if has_manifest:
            check_agreement(package)
        else:
            logger.warning(
                "%s has no %s, as Optimum's folders have none: nothing was verified, because there "
                "are no hashes and no reference outputs",
                folder,
                MANIFEST,
            )
        required.check_graphs(surveys, package.graphs)
        return package

    @property
    def kind(self) -> str:
        """Either "package", or "optimum": no manifest, so no hashes and no reference outputs."""
        return "package" if self.manifest.every_file else "optimum"

    @property
    def hashes_checked(self) -> bool:
        """Whether the hash of every file was compared with the manifest's; waits for that.

        Raises: see `check_hashes`.
        """
        self.check_hashes()
        return self.hashes is not None

    def check_hashes(self, graph: str | None = None) -> None:
        """Wait until the files of one of `graphs` are compared with their hashes; None for all.

        Raises: PackageError: a file was altered. OSError: it cannot be read.
        """
        if self.hashes is not None:
            self.hashes.wait(None if graph is None else self._model_paths(graph))

    @property
    def family(self) -> ModelFamily:
        """The model family of the package."""
        return family_named(self.manifest.family)

    def tokenizer(self, component: str) -> ClipTokenizer:
        """The tokenizer of a text encoder.

        Raises: PackageError: its files are missing or damaged.
        """
        folder = self.folder / self.family.component(component).tokenizer
        with self.files.within(folder).unchanged():
            return ClipTokenizer.from_folder(folder)

    def config(self, component: str, file: str = "config.json") -> Mapping[str, Any]:
        """A component's config.json, or another of its configurations; empty if there is none.

        Raises: PackageError: it is damaged.
        """
        name = f"{component}/{file}"
        if not (self.folder / name).is_file():
            return {}
        with self.files.of([self.folder / name]).unchanged():
            return read_json(self.folder, name)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Every component, followed by its token graphs such as "text_encoder.inputs_embeds"."""
        found = [graphs_of(name, entry) for name, entry in self.manifest.components.items()]
        return tuple(graph for graphs in found for graph in graphs)

    def model_path(self, graph: str) -> Path:
        """The .onnx file of a component, or of one of `graphs`.

        Raises: PackageError: the package has no such component or graph.
        """
        name, _, further = graph.partition(".")
        if name not in self.manifest.components:
            raise PackageError(
                f"{self.folder} has no {name}; it has {', '.join(self.manifest.components)}"
            )
        if graph not in self.graphs:
            what, option = needed_by(further)
            command = f"sdexport export {option}".rstrip()
            raise PackageError(
                f"{self.folder} has no {name}/{further}.onnx, which {what} need; "
                f"'{command}' writes it"
            )
        return self.folder / graph_file(graph)

    def graph_inputs(self, graph: str) -> tuple[TensorSpec, ...]:
        """The inputs of a component's graph or of one of `graphs`, as its file declares them.

        Raises: PackageError: the package has no such graph, or the file is damaged.
        """
        path = self.model_path(graph)
        with parsing(PackageError, path):
            return specs_of(self.surveys.of(graph).inputs, path)

    def model_files(self, graph: str) -> CheckedFiles:
        """The files of a component or of one of `graphs`, as they were checked.

        Raises: PackageError: the package has no such component or graph, or it changed on disk.
        """
        return self.files.of(self._model_paths(graph))

    def _model_paths(self, graph: str) -> list[Path]:
        path = self.model_path(graph)
        weights = sorted(self.surveys.of(graph).locations)
        return [path, *(path.parent / name for name in weights)]

    def model_digest(self, graph: str) -> str:
        """`model_digest` of the sidecar module, from the manifest's hashes if there is a manifest.

        Raises: PackageError: the package has no such component or graph.
        """
        path, name = self.model_path(graph), graph.partition(".")[0]
        files = self.manifest.components[name].files
        if not files:
            return model_digest(path)
        used = {path.name, *self.surveys.of(graph).locations}
        names = [(record.path.removeprefix(f"{name}/"), record.sha256) for record in files]
        return combined_digest([(name, digest) for name, digest in names if name in used])

    @property
    def digest(self) -> str | None:
        """The manifest's digest, which covers the hash of every file; None without a manifest."""
        return self.manifest.digest if self.manifest.every_file else None

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(record.size for record in self.manifest.every_file)


def _folder_identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from one that took its place; None if there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
