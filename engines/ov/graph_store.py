"""Opening compiled graphs from disk, and writing them: those of a package and of the user's cache.

OpenVINO believes what such a file says, so its hash is compared first. A file that cannot be used
costs one line of the log: the graph is compiled again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines.cache import graph_cache
from sdexport.engines.cache.engine_files import checked_files
from sdexport.engines.cache.engine_store import Built, build_once
from sdexport.engines.cache.processor import kernel_target
from sdexport.engines.cache.profiles import Profile
from sdexport.engines.cache.remembered_hashes import nothing_remembered
from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.cache.staleness import stale_reasons
from sdexport.engines.errors import EngineError, PackageError
from sdexport.engines.messages import one_line
from sdexport.engines.ov.blob_file import MappedBlob, plugin_offset
from sdexport.engines.ov.compiled_graph import (
    BACKEND,
    ONCE_SUFFIX,
    SUFFIX,
    Variant,
    cached_name,
    fresh_plans,
    once_path,
    plan_path,
    requirements,
)
from sdexport.engines.session import TensorSpec

CompileInto = Callable[[Path, Path], object]
"""Compiles a graph with OpenVINO's own cache in two folders: of the graph itself and, if it is
split, of what is computed once from bound inputs."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredGraph:
    """A compiled graph of a folder, mapped and compared with its sidecar.

    model, once: the files; see compiled_graph.ONCE_SUFFIX.
    """

    plan: Path
    model: MappedBlob
    once: MappedBlob | None


@dataclass(frozen=True)
class GraphStore:
    """Where the compiled graphs of one ONNX file are looked for.

    graph: name of the component or token graph. digest: of the ONNX file, see
    sidecar.model_digest. version: of OpenVINO. inputs, outputs: of the graph.
    prepared: the folder that `sdexport build` has written to, if it may be used; package: what its
    files must have been built for. tensor: the class openvino.Tensor. cached: whether the user's
    cache is used. reads_all: whether hashes that an earlier process computed do not count.
    """

    graph: str
    digest: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    prepared: Path | None
    package: str | None
    tensor: Any = None
    cached: bool = True
    reads_all: bool = False

    def find(self, variant: Variant) -> tuple[StoredGraph, bool] | None:
        """The compiled graph of a variant, and whether it was prepared; None if there is none."""
        if self.prepared is not None:
            found = self._open(self.prepared, variant, self.package)
            if isinstance(found, StoredGraph):
                return found, True
            if found:
                _log.warning(
                    "%s: its prepared graph is not used: %s; prepare it again: sdexport build "
                    "PACKAGE --backend openvino --component %s --rebuild-stale",
                    self.graph,
                    found,
                    self.graph.partition(".")[0],
                )
        cache = self.cache
        if cache is None:
            return None
        found = self._open(cache, variant, None)
        if isinstance(found, StoredGraph):
            graph_cache.note_use(found.plan)
            return found, False
        if found:
            _log.warning("%s: its cached graph is not used: %s; it is replaced", self.graph, found)
        return None

    def _open(self, folder: Path, variant: Variant, package: str | None) -> StoredGraph | str:
        """The compiled graph of a folder; or why it is not used, "" if there is none."""
        plan = plan_path(folder, self.name_in(folder), variant)
        if not sidecar_path(plan).is_file():
            return ""
        try:
            sidecar = Sidecar.read(plan)
            required = requirements(digest=self.digest, package=package, version=self.version)
            reasons = stale_reasons(sidecar, required)
            known = {name: sidecar.options.get(name) for name in variant.options()}
            if not reasons and known != variant.options():
                reasons = ["it was compiled for something else"]
            if reasons:
                return "; ".join(reasons)
            return self._mapped(plan, sidecar)
        except (EngineError, PackageError, OSError) as error:
            return one_line(error)

    def _mapped(self, plan: Path, sidecar: Sidecar) -> StoredGraph:
        """Raises: EngineError, PackageError, OSError: a file is damaged, altered or missing."""
        once = once_path(plan)
        if not sidecar.files.keys() <= {plan.name, once.name}:
            raise EngineError("its sidecar names unknown files")
        with nothing_remembered(self.reads_all):
            files = checked_files(plan, sidecar)
        with files.unchanged():
            model = MappedBlob.open(plan, self.tensor)
            further = MappedBlob.open(once, self.tensor) if once.name in sidecar.files else None
        return StoredGraph(plan, model, further)

    def prepared_profiles(self, precision: str) -> list[Profile]:
        """The sizes of the prepared graphs that fit, for one precision."""
        if self.prepared is None:
            return []
        plans = fresh_plans(
            self.prepared,
            self.graph,
            digest=self.digest,
            package=self.package,
            version=self.version,
            precision=precision,
        )
        return [profile for plan in plans for profile in Sidecar.read(plan).profiles]

    def folders(self) -> list[Path]:
        """Every folder that compiled graphs are looked for in."""
        return [folder for folder in (self.prepared, self.cache) if folder is not None]

    @property
    def cache(self) -> Path | None:
        """The folder of the user's cache, if it is used."""
        return graph_cache.folder(graph_cache.OPENVINO) if self.cached else None

    def name_in(self, folder: Path) -> str:
        """What names of files in a folder begin with."""
        is_prepared = folder == self.prepared
        return self.graph if is_prepared else cached_name(self.digest, self.graph)

    def write(
        self,
        folder: Path,
        variant: Variant,
        compile_into: CompileInto,
        *,
        rebuild_stale: bool = True,
        graph_sha256: str = "",
    ) -> Built:
        """Compile a graph and store it, unless the present one is up to date.

        Args:
          folder: `prepared` or that of the user's cache.
          compile_into: see CompileInto. rebuild_stale: see build_once.
          graph_sha256: see Sidecar.
        Raises: EngineError: another process writes the same, what OpenVINO wrote is not known or
          not complete, or the present one is stale. OSError: the folder cannot be written to.
        """
        sidecar = Sidecar(
            component=self.graph,
            backend=BACKEND,
            library_version=self.version,
            onnx_sha256=self.digest,
            graph_sha256=graph_sha256,
            target=kernel_target(),
            profiles=variant.profile(self.inputs),
            options=variant.options(),
            inputs=self.inputs,
            outputs=self.outputs,
            package_sha256=(self.package or "") if folder == self.prepared else "",
        )
        plan = plan_path(folder, self.name_in(folder), variant)

        def build(part: Path) -> None:
            targets = part / plan.name, part / once_path(plan).name
            caches = part / "model", part / "once"
            compile_into(*caches)
            for cache, target in zip(caches, targets, strict=True):
                _take(cache, target)

        return build_once(plan, sidecar, build, rebuild_stale=rebuild_stale)


def _take(cache: Path, target: Path) -> None:
    """Move the one file that OpenVINO wrote to a folder of its cache, which is removed.

    Raises: EngineError: it is not the file that is expected, or not complete.
    """
    written = sorted(cache.glob(f"*{SUFFIX}")) if cache.is_dir() else []
    if len(written) == 1:
        try:
            plugin_offset(written[0])
        except ValueError as error:
            raise EngineError(f"OpenVINO's compiled graph is not stored: {error}") from error
        written[0].chmod(0o600)
        os.replace(written[0], target)
    elif target.name.endswith(ONCE_SUFFIX) and not written:
        return
    else:
        raise EngineError(f"OpenVINO wrote {len(written)} compiled graphs instead of one")
    shutil.rmtree(cache, ignore_errors=True)
