"""Compiled graphs of OpenVINO on disk: which one fits a call, and what it was compiled from.

Each is one file, or two if the graph was split for bound inputs, with a sidecar
(cache.sidecar). `sdexport build` writes them into a package, and sessions into the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines.cache.processor_bound import requirements_here
from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.cache.staleness import Requirements, fitting_sidecar
from sdexport.engines.session import ANY_SIZE, TensorSpec

BACKEND = "openvino"
SUFFIX = ".blob"
ONCE_SUFFIX = f".once{SUFFIX}"
"""Of the second file, which computes what depends only on bound inputs."""
REWRITES_VERSION = 2
"""Version of the rewrites (engines/ov/rewrites); graphs compiled by another one are stale."""
REWRITES = "rewrites"
_KEY_DIGITS = 12
_MODEL_DIGITS = 12
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """How a graph is compiled: for which arithmetic, shapes and bound inputs.

    precision, rewrite: see OpenVinoSession. shapes: by input; None for all shapes.
    constants, shared: names of inputs, see Session.bind.
    """

    precision: str
    rewrite: bool
    shapes: Shapes | None
    constants: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()

    def options(self) -> dict[str, Any]:
        """The options of a sidecar, as JSON values."""
        shapes = None if self.shapes is None else {n: [*s] for n, s in self.shapes.items()}
        return {
            "precision": self.precision,
            "rewrite": self.rewrite,
            "shapes": shapes,
            "constants": sorted(self.constants),
            "shared": sorted(self.shared),
            REWRITES: REWRITES_VERSION,
        }

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Variant:
        """The variant that has these `options`."""
        shapes = options["shapes"]
        return cls(
            options["precision"],
            options["rewrite"],
            None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()},
            frozenset(options["constants"]),
            frozenset(options["shared"]),
        )

    @property
    def key(self) -> str:
        """A part of the file's name, which tells variants of one graph apart."""
        values = {name: value for name, value in self.options().items() if name != REWRITES}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]

    def profile(self, specs: Sequence[TensorSpec]) -> tuple[Profile, ...]:
        """The sizes of named dimensions, as a sidecar records them."""
        found: dict[str, Span] = {}
        if self.shapes is None:
            return ()
        for spec in specs:
            for name, size in zip(spec.shape, self.shapes[spec.name], strict=True):
                if isinstance(name, str) and name != ANY_SIZE:
                    found[name] = Span(size, size, size)
        return (found,) if found else ()


def installed_version() -> str:
    """The version of OpenVINO; "" if it is not installed as a package."""
    from importlib import metadata  # takes longer than all of this module

    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return ""


def plan_path(folder: Path, graph: str, variant: Variant) -> Path:
    """The file of a compiled graph, whether it exists or not."""
    return folder / f"{graph}.{variant.key}{SUFFIX}"


def cached_name(digest: str, graph: str) -> str:
    """What names of files in the user's cache begin with: models are kept apart there.

    Args:
      digest: of the ONNX file, see sidecar.model_digest.
    """
    return f"{digest[:_MODEL_DIGITS]}.{graph}"


def once_path(plan: Path) -> Path:
    """The second file of a compiled graph, see ONCE_SUFFIX."""
    return plan.with_name(plan.name.removesuffix(SUFFIX) + ONCE_SUFFIX)


def graph_of(plan: Path) -> str:
    """The graph that a compiled graph's file is named after."""
    return plan.name.removesuffix(SUFFIX).rpartition(".")[0]


def plans_of(folder: Path, graph: str) -> list[Path]:
    """The compiled graphs of a component or a token graph, whatever they were compiled for."""
    try:
        names = sorted(file.name for file in folder.iterdir())
    except OSError:
        return []
    pattern = f"{graph}."
    return [
        folder / name
        for name in names
        if name.startswith(pattern)
        and name.endswith(SUFFIX)
        and not name.endswith(ONCE_SUFFIX)
        and graph_of(Path(name)) == graph
    ]


def requirements(*, digest: str | None, package: str | None, version: str | None) -> Requirements:
    """What a compiled graph must match to be used here; see processor_bound."""
    return requirements_here(
        BACKEND,
        "OpenVINO",
        rewrites=(REWRITES, REWRITES_VERSION),
        digest=digest,
        package=package,
        version=version,
    )


def fresh_plans(
    folder: Path,
    graph: str,
    *,
    digest: str | None,
    package: str | None,
    version: str | None,
    precision: str = "f32",
) -> list[Path]:
    """The compiled graphs of a folder that fit; their sidecars are compared, not their content.

    Args:
      digest, package, version: see `requirements`. precision: of the arithmetic.
    """
    required, found = requirements(digest=digest, package=package, version=version), []
    for plan in plans_of(folder, graph):
        sidecar = fitting_sidecar(plan, required)
        if sidecar is None or sidecar.component != graph:
            continue
        if sidecar.options.get("precision") == precision:
            found.append(plan)
    return found
