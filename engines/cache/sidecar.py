"""The sidecar file of a built engine: its source, builder, options and target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.errors import EngineError
from sdexport.engines.files import read_json, sha256_of
from sdexport.engines.messages import one_line
from sdexport.engines.onnx_file.external_data import external_data_locations
from sdexport.engines.session import TensorSpec

FORMAT_VERSION = 2
_TEXTS = (
    "component",
    "backend",
    "library_version",
    "onnx_sha256",
    "graph_sha256",
    "plan_sha256",
)


@dataclass(frozen=True)
class Sidecar:
    """The content of an engine's .json; cache.staleness compares it.

    component: name of the engine. backend: that opens it.
    library_version: of the library that built it.
    onnx_sha256: see `model_digest`. graph_sha256: see onnx_file.graph_digest.
    target: what it runs on. For TensorRT: the name and compute capability of one GPU, or the
      compute capabilities it was built for.
    profiles, options: what it was built with.
    plan_size: in bytes. files: names and sizes of further files of the engine, in the same folder.
    """

    component: str
    backend: str
    library_version: str
    onnx_sha256: str
    graph_sha256: str
    target: Mapping[str, str]
    profiles: tuple[Profile, ...]
    options: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    plan_size: int = 0
    plan_sha256: str = field(default="", repr=False)
    files: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """The content of the file."""
        data = asdict(self) | {
            "format_version": FORMAT_VERSION,
            "profiles": [{n: str(s) for n, s in p.items()} for p in self.profiles],
        }
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    @property
    def size(self) -> int:
        """Bytes of all files of the engine."""
        return self.plan_size + sum(self.files.values())

    @classmethod
    def read(cls, plan: Path) -> Self:
        """Read the sidecar of a plan.

        Raises: FileNotFoundError: no plan, or no sidecar. EngineError: it is damaged or of another
          format, or a file of the engine has another size.
        """
        path = sidecar_path(plan)
        if not plan.is_file():
            raise FileNotFoundError(f"no engine {plan}")
        if not path.is_file():
            raise FileNotFoundError(f"no sidecar {path}: the build of the engine did not finish")
        data = read_json(path, EngineError, strict=True)
        try:
            version = data.pop("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version {version!r:.20} is not {FORMAT_VERSION}")
            sidecar = cls(**data | _typed(data, plan.stem))
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise EngineError(f"{path} is damaged: {one_line(error)}") from error
        for name, expected in {plan.name: sidecar.plan_size, **sidecar.files}.items():
            file = plan.with_name(name)
            size = file.stat().st_size if file.is_file() else 0
            if size != expected:
                raise EngineError(f"{file} is truncated or altered: {size} bytes, not {expected}")
        return sidecar


def sidecar_path(plan: Path) -> Path:
    """The sidecar file of a plan."""
    return plan.with_suffix(".json")


def model_digest(path: Path) -> str:
    """SHA-256 over an ONNX file and every weight file that it refers to.

    Raises: EngineError: not a well-formed ONNX file.
    """
    try:
        locations = sorted(external_data_locations(path))
    except ValueError as error:
        raise EngineError(f"{path.parent.name}: {error}") from error
    return combined_digest(
        [(path.name, sha256_of(path))]
        + [(name, sha256_of(path.parent / name)) for name in locations]
    )


def combined_digest(files: Sequence[tuple[str, str]]) -> str:
    """One digest for (name, SHA-256) of several files, independent of their order."""
    if len(files) == 1:
        return files[0][1]
    lines = [f"{digest}  {name}\n" for name, digest in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _typed(data: Mapping[str, Any], stem: str) -> dict[str, Any]:
    """The fields whose types JSON does not have, after checking the types of the others."""
    for name in ("target", "options"):
        if not isinstance(data[name], dict):
            raise TypeError(f"{name} is not an object")
    for name in _TEXTS:
        if not isinstance(data[name], str):
            raise TypeError(f"{name} is not a string")
    return {
        "profiles": tuple(
            {str(n): Span.parse(s) for n, s in profile.items()} for profile in data["profiles"]
        ),
        "inputs": tuple(map(TensorSpec.from_json, data["inputs"])),
        "outputs": tuple(map(TensorSpec.from_json, data["outputs"])),
        "plan_size": int(data["plan_size"]),
        "files": {_checked_name(stem, n): int(s) for n, s in data.get("files", {}).items()},
    }


def _checked_name(stem: str, name: str) -> str:
    """Raises: ValueError: not the name of a file of this engine in the same folder."""
    if not name.startswith(f"{stem}.") or name != Path(name).name or len(name.encode()) > 255:
        raise ValueError(f"'{name:.40}' is not the name of a file of {stem}")
    return name
