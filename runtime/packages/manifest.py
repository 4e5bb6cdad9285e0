"""The manifest of a package, sdexport.json: its content, and reading it as untrusted input."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from sdexport.engines import TensorSpec
from sdexport.engines.errors import PackageError
from sdexport.engines.files import read_json as read_json_object
from sdexport.engines.guarded_files import parsing
from sdexport.engines.messages import shown
from sdexport.runtime.models.families import ADAPTER_FAMILIES, family_named
from sdexport.runtime.models.latent_space import LatentSpace
from sdexport.runtime.packages.unfinished import check_manifest_finished

FORMAT_VERSION = 3
MANIFEST = "sdexport.json"
OF_MODELS: Mapping[str, Any] = {
    "scaling_factor": 1.0,
    "default_size": (512, 512),
    "prediction_type": "",
}
"""Settings of models that adapters do not have, and what stands in their place in memory."""


@dataclass(frozen=True)
class FileRecord:
    """A file of the package: path relative to it with forward slashes, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ComponentRecord:
    """One component: its files (model.onnx first), precision, inputs and outputs.

    nodes: the number of nodes in that precision, and of others for each reason.
    """

    files: tuple[FileRecord, ...]
    precision: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The content of sdexport.json.

    family: see sdexport.runtime.models.families. source: where the checkpoint came from.
    latent_channels, downscale, scaling_factor, latents_mean, latents_std: see LatentSpace.
    default_size: (height, width) in pixels.
    preview: (latent_channels + 1, 3) colors for preview.linear_preview.
    verification: what verification measured at export, by "component.output"; verified_with: the
    backend that it used.

    An adapter has no settings of its own in OF_MODELS, and its file does not name them.
    """

    family: str
    source: Mapping[str, str]
    latent_channels: int
    downscale: int
    scaling_factor: float
    default_size: tuple[int, int]
    prediction_type: str
    components: Mapping[str, ComponentRecord]
    files: tuple[FileRecord, ...]
    tools: Mapping[str, str]
    preview: tuple[tuple[float, ...], ...] | None = None
    verification: Mapping[str, Any] | None = None
    verified_with: str | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    format_version: int = FORMAT_VERSION

    @property
    def is_adapter(self) -> bool:
        """Whether the package holds an adapter instead of a model."""
        return self.family in ADAPTER_FAMILIES

    @property
    def latent_space(self) -> LatentSpace:
        """Shapes and scaling of the latents."""
        return LatentSpace(
            self.latent_channels,
            self.downscale,
            self.scaling_factor,
            self.latents_mean,
            self.latents_std,
        )

    @property
    def every_file(self) -> tuple[FileRecord, ...]:
        """The files of the components, then all others."""
        return (*(r for c in self.components.values() for r in c.files), *self.files)

    @cached_property  # each image carries it
    def digest(self) -> str:
        """`manifest_digest` of the content, which sdexport.json holds too."""
        return manifest_digest(self._content())

    def to_json(self) -> str:
        """The content of sdexport.json."""
        values = self._content() | {"digest": self.digest}
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def _content(self) -> dict[str, Any]:
        """JSON values without the digest; what there is none of is left out."""
        left_out = OF_MODELS if self.is_adapter else {}
        return {k: v for k, v in asdict(self).items() if v is not None and k not in left_out}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises: KeyError, TypeError, ValueError: not the shape of a manifest."""
        if str(data["family"]) in ADAPTER_FAMILIES:
            data = {**OF_MODELS, **data}
        values = dict(data)
        values["components"] = {
            str(name): ComponentRecord(
                files=_records(entry["files"]),
                precision=str(entry["precision"]),
                opset=int(entry["opset"]),
                inputs=tuple(map(TensorSpec.from_json, entry["inputs"])),
                outputs=tuple(map(TensorSpec.from_json, entry["outputs"])),
                nodes={str(k): int(v) for k, v in entry.get("nodes", {}).items()},
            )
            for name, entry in data["components"].items()
        }
        values["files"] = _records(data["files"])
        height, width = data["default_size"]
        values["default_size"] = (int(height), int(width))
        for key, kind in (("latent_channels", int), ("downscale", int), ("scaling_factor", float)):
            values[key] = kind(data[key])
        for key in ("source", "tools"):
            values[key] = {str(k): str(v) for k, v in data[key].items()}
        for key in ("family", "prediction_type"):
            values[key] = str(data[key])
        figures = data.get("verification")
        if figures is not None:
            values["verification"] = {k: _figures(v) for k, v in figures.items()}
        if data.get("verified_with") is not None:
            values["verified_with"] = str(data["verified_with"])
        if data.get("preview") is not None:
            values["preview"] = tuple(tuple(map(float, row)) for row in data["preview"])
        for key in ("latents_mean", "latents_std"):
            if data.get(key) is not None:
                values[key] = tuple(map(float, data[key]))
        manifest = cls(**values)
        _ = manifest.latent_space  # which checks the numbers
        sizes = (manifest.latent_channels, manifest.downscale, *manifest.default_size)
        if min(sizes) < 1 or max(sizes) > 2**20:
            raise ValueError("sizes must be positive")
        colours = np.asarray(manifest.preview or np.zeros((manifest.latent_channels + 1, 3)))
        if colours.shape != (manifest.latent_channels + 1, 3) or not np.isfinite(colours).all():
            raise ValueError("preview must hold a colour for each latent channel and one more")
        if not (math.isfinite(manifest.scaling_factor) and manifest.scaling_factor > 0):
            raise ValueError(f"scaling_factor must be positive, got {manifest.scaling_factor}")
        return manifest


def read_json(folder: Path, name: str, *, strict: bool = False) -> dict[str, Any]:
    """The JSON object in a file of the package; PackageError if it is missing or damaged."""
    try:
        return read_json_object(folder / name, PackageError, folder=folder, strict=strict)
    except FileNotFoundError:
        raise PackageError(f"{folder} is incomplete: {name} is missing") from None


def read_manifest(folder: Path) -> Manifest:
    """Read sdexport.json; PackageError if it is missing, damaged or of an unknown version."""
    data = read_json(folder, MANIFEST, strict=True)
    check_manifest_finished(folder, data)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise PackageError(
            f"{folder}: format_version {shown(version)} is unknown to this sdexport, which reads "
            f"{FORMAT_VERSION}; export the checkpoint again or update sdexport"
        )
    with parsing(PackageError, f"{folder}: {MANIFEST}"):
        manifest = _checked(data)
    known = {spec.name for spec in family_named(manifest.family).components}
    unknown = [name for name in manifest.components if name not in known]
    if unknown:
        raise PackageError(
            f"{folder}: {MANIFEST} lists components that {manifest.family} does not have: "
            f"{', '.join(unknown)}"
        )
    return manifest


def manifest_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 over the content of a manifest, as 64 hexadecimal digits.

    It is taken of the JSON text without white space, with sorted keys and without the entry
    "digest", in which the manifest holds it.

    Raises: ValueError: a number that is not finite.
    """
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(data: Mapping[str, Any]) -> Manifest:
    """The manifest with this content, whose digest is right.

    Raises: ValueError: it was altered. Others: see Manifest.from_dict.
    """
    digest = data["digest"]
    if digest != manifest_digest(data):
        raise ValueError("its content does not match its own digest, so it was altered")
    manifest = Manifest.from_dict({k: v for k, v in data.items() if k != "digest"})
    if digest != manifest.digest:  # such as "3" for 3, or null
        raise ValueError("it holds values in a form that sdexport does not write")
    return manifest


def _records(entries: list[dict[str, Any]]) -> tuple[FileRecord, ...]:
    return tuple(FileRecord(str(e["path"]), int(e["size"]), str(e["sha256"])) for e in entries)


def _figures(values: Mapping[str, Any]) -> dict[str, Any]:
    if not all(isinstance(value, (int, float)) for k, value in values.items() if k != "metric"):
        raise TypeError("verification must hold numbers")  # "metric": of older packages
    return dict(values)
