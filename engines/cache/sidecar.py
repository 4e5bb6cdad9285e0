"""What stands beside a plan: from what, with what and for what it was built. The cache's key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from sdexport.engines.cache.profiles import Profile, Span
from sdexport.engines.errors import EngineError
from sdexport.engines.files import sha256_of
from sdexport.engines.messages import one_line
from sdexport.engines.onnx_file.wire_format import external_data_locations
from sdexport.engines.session import TensorSpec

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Sidecar:
    """The content of a plan's .json.

    onnx_sha256: see `model_digest`. graph_sha256: see graph_digest. target: for a plan that
    belongs to one GPU its name and compute capability, else the list of compute capabilities it was
    built for. plan_size: in bytes. files: name and size of what else lies beside it.
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
        data = asdict(self) | {
            "format_version": FORMAT_VERSION,
            "profiles": [{n: str(s) for n, s in p.items()} for p in self.profiles],
        }
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    @property
    def size(self) -> int:
        """Bytes of the plan and of what belongs to it."""
        return self.plan_size + sum(self.files.values())

    @classmethod
    def read(cls, plan: Path) -> Self:
        """The sidecar of a plan.

        Raises: FileNotFoundError: no plan, or no sidecar. EngineError: it is damaged, of another
          format, or the plan beside it has another size.
        """
        path = sidecar_path(plan)
        if not plan.is_file():
            raise FileNotFoundError(f"no engine {plan}")
        if not path.is_file():
            raise FileNotFoundError(f"no sidecar {path}: the engine was not built to its end")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data.pop("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version {version!r:.20} is not {FORMAT_VERSION}")
            sidecar = cls(**data | _typed(data, plan.stem))
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise EngineError(f"{path} is damaged: {one_line(error)}") from error
        for name, expected in {plan.name: sidecar.plan_size, **sidecar.files}.items():
            file = plan.with_name(name)
            size = file.stat().st_size if file.is_file() else 0
            if size != expected:
                raise EngineError(f"{file} is truncated or altered: {size} bytes, not {expected}")
        return sidecar

    def takes_weights(self, graph_sha256: str) -> bool:
        """Whether weights of another ONNX file, of that graph, can be put into the plan."""
        return bool(self.options.get("refittable")) and self.graph_sha256 == graph_sha256

    def differences(self, wanted: Self) -> list[str]:
        """What of the key is not as wanted, in words; nothing if other weights can be put in."""
        found = []
        same = self.onnx_sha256 == wanted.onnx_sha256
        if not same and not self.takes_weights(wanted.graph_sha256):
            found.append("the ONNX file is another one")
        for what in ("backend", "library_version"):
            mine, other = getattr(self, what), getattr(wanted, what)
            if mine != other:
                found.append(f"{what.replace('_', ' ')} {mine} instead of {other}")
        for have, want in ((self.target, wanted.target), (self.options, wanted.options)):
            for key in dict.fromkeys([*have, *want]):
                if have.get(key) != want.get(key):
                    label = key.replace("_", " ")
                    found.append(f"{label} {have.get(key)} instead of {want.get(key)}")
        if self.profiles != wanted.profiles:
            found.append(f"profiles {_list(self.profiles)} instead of {_list(wanted.profiles)}")
        return found


def sidecar_path(plan: Path) -> Path:
    """Where the sidecar of a plan lies."""
    return plan.with_suffix(".json")


def model_digest(path: Path) -> str:
    """SHA-256 over an ONNX file and every file of weights that it points to.

    Raises: EngineError: no well-formed ONNX file.
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
    """One digest for (name, SHA-256) of each file, the graph's among them, in any order."""
    if len(files) == 1:
        return files[0][1]
    lines = [f"{digest}  {name}\n" for name, digest in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _typed(data: Mapping[str, Any], stem: str) -> dict[str, Any]:
    for name in ("target", "options"):
        if not isinstance(data[name], dict):
            raise TypeError(f"{name} is no object")
    for name in (
        "component",
        "backend",
        "library_version",
        "onnx_sha256",
        "graph_sha256",
        "plan_sha256",
    ):
        if not isinstance(data[name], str):
            raise TypeError(f"{name} is no text")
    return {
        "profiles": tuple(
            {str(n): Span.parse(s) for n, s in profile.items()} for profile in data["profiles"]
        ),
        "inputs": _specs(data["inputs"]),
        "outputs": _specs(data["outputs"]),
        "plan_size": int(data["plan_size"]),
        "files": {_of(stem, n): int(size) for n, size in data.get("files", {}).items()},
    }


def _specs(entries: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(e["name"]), str(e["dtype"]), tuple(e["shape"])) for e in entries)


def _of(stem: str, name: str) -> str:
    if not name.startswith(f"{stem}.") or name != Path(name).name or len(name.encode()) > 255:
        raise ValueError(f"'{name:.40}' is no name of a file of {stem}")
    return name


def _list(profiles: Sequence[Profile]) -> str:
    return "; ".join(", ".join(f"{n} {s}" for n, s in p.items()) or "fixed" for p in profiles)
