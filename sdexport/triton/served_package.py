"""The package behind a pipeline whose graphs Triton runs: everything of it but the graphs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from sdexport.engines.cache.hash_check import HashCheck
from sdexport.engines.errors import PackageError
from sdexport.engines.guarded_files import CheckedFiles, FileIdentity
from sdexport.engines.messages import plain
from sdexport.engines.onnx_file.declared_values import DeclaredValue
from sdexport.engines.onnx_file.graph_survey import GraphSurvey
from sdexport.engines.session import TensorSpec
from sdexport.runtime.packages.agreement import check_agreement
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.listed_files import (
    MODEL_INDEX,
    REFERENCE,
    SCHEDULER_CONFIG,
    check_all_listed,
    check_records,
    inside,
)
from sdexport.runtime.packages.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    read_json,
    read_manifest,
)
from sdexport.runtime.packages.package import Package
from sdexport.runtime.packages.package_files import altered, opened_records
from sdexport.triton.repository_record import ModelRecord, RepositoryRecord

_log = logging.getLogger(__name__)


def served_files(manifest: Manifest) -> list[FileRecord]:
    """The files of a package that a pipeline needs if others run its graphs."""
    return [each for each in manifest.files if not each.path.startswith(f"{REFERENCE}/")]


class RecordedSurveys(GraphSurveys):
    """Inputs and outputs of the graphs as a repository records them."""

    def __init__(self, folder: Path, models: Mapping[str, ModelRecord]) -> None:
        super().__init__(folder)
        self._models = models

    def of(self, graph: str) -> GraphSurvey:
        """Raises: PackageError: the repository has no such graph."""
        if graph not in self._models:
            raise PackageError(f"{self.folder}: the repository has no model of {graph}")
        model = self._models[graph]
        return GraphSurvey(
            operators={},
            external=(),
            locations=frozenset(),
            functions=0,
            depth=0,
            problems=(),
            inputs=tuple(map(_declared, model.inputs)),
            outputs=tuple(map(_declared, model.outputs)),
            opset=None,
            metadata={},
            factors=frozenset(),
        )


def _declared(spec: TensorSpec) -> DeclaredValue:
    return DeclaredValue(spec.name, spec.dtype, spec.shape, shapes=1)


def load_served(folder: Path, record: RepositoryRecord, repository: Path) -> Package:
    """Load and check the package without graphs that is next to the pipeline.

    The files of the graphs' models are compared with their hashes as well, if these models are in
    the same folder: Triton copies models from a remote repository one by one, and then nothing here
    can read them. That is logged.

    Args:
      folder: with sdexport.json and the small files. repository: the folder of all models.
    Raises: PackageError: a file is missing, altered or not listed, or is not that of the record.
    """
    manifest = read_manifest(folder)
    if manifest.digest != record.digest:
        raise PackageError(
            f"{folder}: {manifest.digest[:12]} is not the package of this repository, "
            f"{record.digest[:12]}; write the repository again"
        )
    check_records(folder, manifest)
    models = {model.graph: model for model in record.models}
    missing = [name for name in manifest.components if name not in models]
    if missing:
        raise PackageError(f"{folder}: the repository has no model of {', '.join(missing)}")
    _check_graphs(folder, manifest, record)
    identities: dict[Path, FileIdentity] = {}
    small = opened_records(folder, served_files(manifest), identities)
    HashCheck(small, partial(altered, folder), what=str(folder)).wait()
    check_all_listed(folder, manifest)
    files = CheckedFiles(identities)
    with files.unchanged():
        package = Package(
            folder,
            manifest,
            read_json(folder, SCHEDULER_CONFIG),
            read_json(folder, MODEL_INDEX),
            files,
            _graph_hashes(repository, record),
            surveys=RecordedSurveys(folder, models),
        )
    check_agreement(package)
    return package


def _check_graphs(folder: Path, manifest: Manifest, record: RepositoryRecord) -> None:
    """Check that the models run the package's own graphs.

    Raises: PackageError: the manifest lists no file with the hash of one of a model.
    """
    for model in record.models:
        component = manifest.components.get(model.graph.partition(".")[0])
        known = {each.sha256 for each in component.files} if component else set()
        if not model.files or any(each.sha256 not in known for each in model.files):
            raise PackageError(
                f"{folder}: {MANIFEST} lists other files of {plain(model.graph)} than the "
                "repository has"
            )


def _graph_hashes(repository: Path, record: RepositoryRecord) -> HashCheck | None:
    """Compares the graphs' files in threads; None if they are somewhere else."""
    records: dict[str, FileRecord] = {}
    elsewhere = []
    for model in record.models:
        if os.path.lexists(repository / model.name):
            records |= {file.path: file for file in model.files}
        else:
            elsewhere.append(model.name)
    for path in records:
        inside(repository, path)
    if elsewhere:
        _log.warning(
            "%s: not in the same folder, as in a remote repository: %s; their hashes were not "
            "compared",
            record.name,
            ", ".join(elsewhere),
        )
    if not records:
        return None
    opened = opened_records(repository, records.values(), {})
    return HashCheck(opened, partial(altered, repository), what=str(repository))
