"""Reading and checking a package: the folder that an export writes.

A folder that Optimum exported (no sdexport.json) loads too; it carries no hashes to check.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from sdexport.engines import (
    AUTO,
    PLAN_BACKENDS,
    PREPARED_BACKEND,
    EngineError,
    Session,
    choose,
    open_session,
)
from sdexport.engines.cache.sidecar import combined_digest, model_digest
from sdexport.engines.errors import PackageError
from sdexport.engines.files import sha256_of
from sdexport.engines.onnx_file.external_data import external_data_locations
from sdexport.runtime.packages.manifest import (
    MANIFEST,
    Component,
    FileRecord,
    Manifest,
    read_json,
    read_manifest,
)
from sdexport.runtime.packages.optimum import manifest_of_optimum
from sdexport.runtime.text.tokenizer import ClipTokenizer

_log = logging.getLogger(__name__)
TOKEN_EMBEDDING, INPUTS_EMBEDS = "token_embedding", "inputs_embeds"
"""Graphs beside a text encoder's own, called "text_encoder.token_embedding" and so on: its
beginning, which looks tokens up, and the rest of it."""
EDGES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "text_encoder": (frozenset({"input_ids"}), frozenset({"last_hidden_state"})),
    "text_encoder_2": (frozenset({"input_ids"}), frozenset({"last_hidden_state"})),
    "unet": (frozenset({"sample", "timestep", "encoder_hidden_states"}), frozenset({"out_sample"})),
    "vae_decoder": (frozenset({"latent_sample"}), frozenset({"sample"})),
    "vae_encoder": (frozenset({"sample"}), frozenset({"latent_parameters"})),
    TOKEN_EMBEDDING: (frozenset({"input_ids"}), frozenset({INPUTS_EMBEDS})),
    INPUTS_EMBEDS: (frozenset({"input_ids", INPUTS_EMBEDS}), frozenset({"last_hidden_state"})),
}
"""Names that a component's graph must have among its inputs and outputs, and those beside it."""


@dataclass(frozen=True)
class Package:
    """A package on disk whose files were checked.

    Use `Package.load`.
    """

    folder: Path
    manifest: Manifest
    scheduler_config: Mapping[str, Any] = field(repr=False)
    index: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        verify: bool = True,
        on_bytes: Callable[[int], object] = lambda size: None,
    ) -> Self:
        """Read a package and check it: paths, sizes, and with `verify` every hash.

        Args:
          on_bytes: called with the size of each file that was checked, for a progress bar.
        Raises: FileNotFoundError: no such folder. PackageError: no package, of another format
          version, incomplete, altered, or pointing outside of its folder.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no package at {folder}: there is no such folder")
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            for record in manifest.every_file:
                _check_file(folder, record, verify=verify)
                on_bytes(record.size)
        elif (folder / "unet" / "model.onnx").is_file():
            manifest = manifest_of_optimum(folder)
        else:
            raise PackageError(
                f"{folder} is no package: it has no {MANIFEST}; make one with 'sdexport export'"
            )
        locations = {
            name: set().union(*(_locations(folder, graph) for graph in _graphs(name, component)))
            for name, component in manifest.components.items()
        }
        if (folder / MANIFEST).is_file():
            _check_all_listed(folder, manifest, locations)
        _check_external_data(folder, locations)
        scheduler_config = read_json(folder, "scheduler/scheduler_config.json")
        has_index = (folder / "model_index.json").is_file()
        index = read_json(folder, "model_index.json") if has_index else {}
        return cls(folder, manifest, scheduler_config, index)

    def tokenizer(self, component: str = "text_encoder") -> ClipTokenizer:
        """The tokenizer of a text encoder.

        Raises: PackageError: its files are missing or damaged.
        """
        where = component.replace("text_encoder", "tokenizer")
        return ClipTokenizer.from_folder(self.folder / where)

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's config.json; empty where there is none.

        Raises: PackageError: it is damaged.
        """
        name = f"{component}/config.json"
        return read_json(self.folder, name) if (self.folder / name).is_file() else {}

    @property
    def graphs(self) -> tuple[str, ...]:
        """Every component, and after it the graphs beside its own."""
        found = [_graphs(name, entry) for name, entry in self.manifest.components.items()]
        return tuple(graph for graphs in found for graph in graphs)

    def model_path(self, component: str) -> Path:
        """The .onnx file of a component, or of one of `graphs`.

        Raises: PackageError: the package has no such component or graph.
        """
        name, _, graph = component.partition(".")
        if name not in self.manifest.components:
            raise PackageError(
                f"{self.folder} has no {name}; it has {', '.join(self.manifest.components)}"
            )
        if component not in self.graphs:
            raise PackageError(
                f"{self.folder} has no {name}/{graph}.onnx, so tokens cannot be changed before the "
                "text encoder; 'sdexport export' writes it"
            )
        return self.folder / _file(component)

    def plan_path(self, component: str, backend: str, engine_dir: str | Path | None = None) -> Path:
        """Where the built engine of a component is, or would be."""
        folder = self.folder / "engines" if engine_dir is None else Path(engine_dir)
        kind = "onnx" if backend == PREPARED_BACKEND else "plan"
        return folder / backend / f"{component}.{kind}"

    def resolve(self, component: str, backend: str, engine_dir: str | Path | None = None) -> str:
        """The backend itself, or what "auto" takes for this component; that is logged.

        A graph beside a component's own has seldom a plan: without one it is run as by "auto".
        Raises: ImportError: no backend is installed.
        """
        if backend == AUTO or not self.runs_itself(component, backend, engine_dir):
            asked = backend
            backend = choose(plan_of=lambda name: self.plan_path(component, name, engine_dir))
            _log.info("%s: %s takes %s", component, asked, backend)
        return backend

    def runs_itself(
        self, component: str, backend: str, engine_dir: str | Path | None = None
    ) -> bool:
        """Whether the backend opens it: not a graph beside a component's own without a plan."""
        if "." not in component or backend not in PLAN_BACKENDS:
            return True
        return self.plan_path(component, backend, engine_dir).is_file()

    def model_digest(self, component: str) -> str:
        """`model_digest` of the sidecar, from the manifest's hashes where there is a manifest.

        Raises: PackageError: the package has no such component.
        """
        path, name = self.model_path(component), component.partition(".")[0]
        files = self.manifest.components[name].files
        if not files:
            return model_digest(path)
        used = {path.name, *_locations(self.folder, component)}
        names = [(record.path.removeprefix(f"{name}/"), record.sha256) for record in files]
        return combined_digest([(name, digest) for name, digest in names if name in used])

    def open(
        self,
        component: str,
        backend: str = "onnxruntime",
        *,
        engine_dir: str | Path | None = None,
        **options: Any,
    ) -> Session:
        """Open a component as a Session; see sdexport.engines.open_session.

        Args:
          backend: "auto" takes the best that is installed, a plan that was built before all others.
          engine_dir: where built engines are, instead of the package's own engines folder.
        Raises: PackageError: the graph lacks an input or output that the component must have.
        """
        path = self.model_path(component)
        backend = self.resolve(component, backend, engine_dir)
        plan = self.plan_path(component, backend, engine_dir)
        if backend in PLAN_BACKENDS or (backend == PREPARED_BACKEND and plan.exists()):
            options |= {"plan": plan, "digest": self.model_digest(component)}
        try:
            session = open_session(path, backend, **options)
        except EngineError as error:
            raise _with_advice(error, self.manifest.components[component], backend) from error
        for kind, wanted, specs in zip(
            ("input", "output"),
            EDGES[component.rpartition(".")[2]],
            (session.inputs, session.outputs),
            strict=True,
        ):
            names = [spec.name for spec in specs]
            missing = sorted(wanted.difference(names))
            if missing:
                session.close()
                raise PackageError(
                    f"{self.folder}: {component}: the graph has no {kind} '{missing[0]}'; "
                    f"it has {', '.join(names)}"
                )
        return session

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(record.size for record in self.manifest.every_file)


def _with_advice(error: EngineError, component: Component, backend: str) -> EngineError:
    """The error; and the way out where a backend has no kernels for bfloat16."""
    if component.precision != "bf16" or not backend.startswith("onnxruntime"):
        return error
    return EngineError(
        f"{error}; the package is in bf16: use --backend openvino or tensorrt-rtx, or export it "
        "in another precision"
    )


def _inside(folder: Path, path: str) -> Path:
    """The file that a path in the package means; PackageError if it leads out of the folder."""
    pure = PurePosixPath(path)
    target = folder / pure
    outside = pure.is_absolute() or ".." in pure.parts or any(c in path for c in "\\:\0")
    if outside or not target.resolve().is_relative_to(folder.resolve()):
        raise PackageError(f"{folder}: '{path}' points outside of the package")
    return target


def _check_file(folder: Path, record: FileRecord, *, verify: bool) -> None:
    path = _inside(folder, record.path)
    if not path.is_file():
        raise PackageError(f"{folder} is incomplete: {record.path} is missing")
    size = path.stat().st_size
    if size != record.size:
        raise PackageError(
            f"{folder}: {record.path} is truncated or altered: {size} bytes, not {record.size}"
        )
    if verify and sha256_of(path) != record.sha256:
        raise PackageError(f"{folder}: {record.path} was altered: its SHA-256 does not match")


def _check_all_listed(folder: Path, manifest: Manifest, locations: Mapping[str, set[str]]) -> None:
    """Whatever is read from a package must be under its manifest's hashes."""
    listed = {record.path for record in manifest.every_file}
    read = [folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"]
    for pattern in ("tokenizer*/*", "*/config.json", "reference/*.npz"):
        read += folder.glob(pattern)
    for name, found in locations.items():
        read += [folder / name / location for location in found]
    for path in read:
        if path.is_file() and path.relative_to(folder).as_posix() not in listed:
            raise PackageError(
                f"{folder}: {path.relative_to(folder).as_posix()} is not listed in {MANIFEST}"
            )


def _check_external_data(folder: Path, locations: Mapping[str, set[str]]) -> None:
    for component, found in locations.items():
        for location in found:
            if not _inside(folder, f"{component}/{location}").is_file():
                raise PackageError(f"{folder} is incomplete: {component}/{location} is missing")


def _graphs(name: str, component: Component) -> list[str]:
    """A component and the graphs beside its own."""
    files = [record.path for record in component.files]
    further = [f"{name}.{graph}" for graph in (TOKEN_EMBEDDING, INPUTS_EMBEDS)]
    return [name, *(graph for graph in further if _file(graph) in files)]


def _file(component: str) -> str:
    """Where in a package the graph of a component lies, or one beside it."""
    name, _, graph = component.partition(".")
    return f"{name}/{graph or 'model'}.onnx"


def _locations(folder: Path, component: str) -> set[str]:
    try:
        return external_data_locations(_inside(folder, _file(component)))
    except ValueError as error:
        raise PackageError(f"{folder}: {component}: {error}") from error
