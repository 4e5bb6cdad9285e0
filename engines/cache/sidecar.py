"""The sidecar file of a built engine: its source, builder, options, target and hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.errors import EngineError
from sdexport.engines.files import read_json, sha256_of
from sdexport.engines.guarded_files import open_guarded, parsing
from sdexport.engines.messages import shown
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.engines.session import TensorSpec

FORMAT_VERSION = 3
_TEXTS = (
    "component",
    "backend",
    "library_version",
    "onnx_sha256",
    "graph_sha256",
    "package_sha256",
)
OLDER = "is of an older sdexport and lacks the hashes of the engine's files"
_LONGEST = 200
"""Characters of one of these."""
_OWN_DIGEST = "sidecar_sha256"


@dataclass(frozen=True)
class StoredFile:
    """Size in bytes and SHA-256 of one file of an engine."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Those of a file that was just written."""
        return cls(path.stat().st_size, sha256_of(path))


@dataclass(frozen=True)
class Sidecar:
    """The content of an engine's .json; cache.staleness compares it.

    component: name of the engine. backend: that opens it.
    library_version: of the library that built it.
    onnx_sha256: see `model_digest`. graph_sha256: see onnx_file.graph_digest.
    package_sha256: over the hashes of the package's files; "" without a package or manifest.
    target: what it runs on. For TensorRT: the name and compute capability of one GPU, or the
      compute capabilities it was built for.
    profiles, options: what it was built with.
    files: by name, every file of the engine except this one; all are in the same folder.
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
    package_sha256: str = ""
    files: Mapping[str, StoredFile] = field(default_factory=dict, repr=False)

    def to_json(self) -> str:
        """The content of the file, which ends with a digest of its own."""
        data = asdict(self) | {
            "format_version": FORMAT_VERSION,
            "profiles": [{n: str(s) for n, s in p.items()} for p in self.profiles],
        }
        return with_own_digest(data)

    @property
    def size(self) -> int:
        """Bytes of all files of the engine."""
        return sum(file.size for file in self.files.values())

    @classmethod
    def read(cls, plan: Path) -> Self:
        """Read the sidecar of a plan.

        Its content is compared with its own digest, and the sizes of the engine's files with those
        recorded; engine_files.checked_files compares the hashes.
        Raises: FileNotFoundError: no plan, or no sidecar. EngineError: it is damaged or of another
          format, or a file of the engine is missing, no regular file, or has another size.
        """
        path = sidecar_path(plan)
        if not os.path.lexists(plan):
            raise FileNotFoundError(f"no engine {plan}")
        if not os.path.lexists(path):
            raise FileNotFoundError(f"no sidecar {path}: the build of the engine did not finish")
        data = read_json(path, EngineError, folder=path.parent, strict=True)
        with parsing(EngineError, path):
            _check_version(path, data.pop("format_version"))
            if data.pop(_OWN_DIGEST) != _own_digest(data):
                raise ValueError("its content does not match its own digest")
            sidecar = cls(**data | _typed(data, plan.stem))
            if plan.name not in sidecar.files:
                raise ValueError(f"it has no hash of {plan.name}")
        for name, stored in sidecar.files.items():
            _check_size(plan.with_name(name), stored.size)
        return sidecar


def with_own_digest(data: Mapping[str, Any]) -> str:
    """The content of a sidecar file, from its values without `sidecar_sha256`."""
    values = {name: value for name, value in data.items() if name != "format_version"}
    content = {**data, _OWN_DIGEST: _own_digest(values)}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def sidecar_path(plan: Path) -> Path:
    """The sidecar file of a plan."""
    return plan.with_suffix(".json")


def model_digest(path: Path) -> str:
    """SHA-256 over an ONNX file and every weight file that it refers to.

    Raises: EngineError: not a well-formed ONNX file.
    """
    try:
        locations = sorted(survey(path).locations)
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
        value = data[name]
        if not isinstance(value, str):
            raise TypeError(f"{name} is not a string")
        if not value.isprintable() or len(value) > _LONGEST:  # messages quote it
            raise ValueError(f"{name} is {shown(value)}")
    return {
        "profiles": tuple(
            {str(n): Span.parse(s) for n, s in profile.items()} for profile in data["profiles"]
        ),
        "inputs": tuple(map(TensorSpec.from_json, data["inputs"])),
        "outputs": tuple(map(TensorSpec.from_json, data["outputs"])),
        "files": {_checked_name(stem, n): _stored(f) for n, f in data["files"].items()},
    }


def _stored(entry: Mapping[str, Any]) -> StoredFile:
    size, sha256 = entry["size"], entry["sha256"]
    if not isinstance(size, int) or not isinstance(sha256, str):
        raise TypeError("size and sha256 of a file are not a whole number and a string")
    return StoredFile(size, sha256)


def _own_digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _check_version(path: Path, version: object) -> None:
    if version in (1, 2):
        raise EngineError(f"{path} {OLDER}")
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version {version!r:.20} is not {FORMAT_VERSION}")


def _check_size(path: Path, expected: int) -> None:
    try:
        with open_guarded(path, error=EngineError, folder=path.parent) as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise EngineError(f"{path} is missing") from None
    if size != expected:
        raise EngineError(f"{path} is truncated or altered: {size} bytes, not {expected}")


def _checked_name(stem: str, name: str) -> str:
    """Raises: ValueError: not the name of a file of this engine in the same folder."""
    if not name.startswith(f"{stem}.") or name != Path(name).name or len(name.encode()) > 255:
        raise ValueError(f"'{name:.40}' is not the name of a file of {stem}")
    return name
