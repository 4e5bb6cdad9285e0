"""The manifest of a package, sdexport.json: what it holds, and reading it with care."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from sdexport.engines import TensorSpec
from sdexport.engines.errors import PackageError

FORMAT_VERSION = 1
MANIFEST = "sdexport.json"
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder")


@dataclass(frozen=True)
class FileRecord:
    """A file of the package: path relative to it with forward slashes, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Component:
    """One graph: its files (the .onnx first), arithmetic, and what goes in and out.

    nodes: how many are of that precision, and how many are not for each reason.
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

    latent_channels; downscale: pixels a latent cell covers; scaling_factor: latents of the UNet
    over latents of the VAE; default_size: (height, width) in pixels; preview: (latent_channels + 1,
    3) colours for preview.linear_preview; verified_with: the backend of `verification`.
    """

    family: str
    source: Mapping[str, str]
    latent_channels: int
    downscale: int
    scaling_factor: float
    default_size: tuple[int, int]
    prediction_type: str
    components: Mapping[str, Component]
    files: tuple[FileRecord, ...]
    tools: Mapping[str, str]
    preview: tuple[tuple[float, ...], ...] | None = None
    verification: Mapping[str, Any] | None = None
    verified_with: str | None = None
    format_version: int = FORMAT_VERSION

    @property
    def every_file(self) -> tuple[FileRecord, ...]:
        """Those of the components, then all others."""
        return (*(r for c in self.components.values() for r in c.files), *self.files)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises: KeyError, TypeError, ValueError: not the shape of a manifest."""
        values = dict(data)
        values["components"] = {
            str(name): Component(
                files=_records(entry["files"]),
                precision=str(entry["precision"]),
                opset=int(entry["opset"]),
                inputs=_specs(entry["inputs"]),
                outputs=_specs(entry["outputs"]),
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
        manifest = cls(**values)
        sizes = (manifest.latent_channels, manifest.downscale, *manifest.default_size)
        if min(sizes) < 1 or max(sizes) > 2**20:
            raise ValueError("sizes must be positive")
        colours = np.asarray(manifest.preview or np.zeros((manifest.latent_channels + 1, 3)))
        if colours.shape != (manifest.latent_channels + 1, 3) or not np.isfinite(colours).all():
            raise ValueError("preview must hold a colour for each latent channel and one more")
        if not (math.isfinite(manifest.scaling_factor) and manifest.scaling_factor > 0):
            raise ValueError(f"scaling_factor must be positive, got {manifest.scaling_factor}")
        return manifest


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the package; PackageError if there is none."""
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PackageError(f"{folder} is incomplete: {name} is missing") from None
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{folder}: {name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise PackageError(f"{folder}: {name} is damaged: it holds no JSON object")
    return value


def read_manifest(folder: Path) -> Manifest:
    """sdexport.json, in the shape that it must have; PackageError if it has another."""
    data = read_json(folder, MANIFEST)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise PackageError(
            f"{folder}: format_version {version!r} is unknown to this sdexport, which reads "
            f"{FORMAT_VERSION}; export the checkpoint again or update sdexport"
        )
    try:
        manifest = Manifest.from_dict(data)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PackageError(f"{folder}: {MANIFEST} is damaged: {error!r}") from error
    strange = [name for name in manifest.components if name not in COMPONENTS]
    if strange:
        raise PackageError(f"{folder}: {MANIFEST} names unknown components: {', '.join(strange)}")
    for name, component in manifest.components.items():
        if f"{name}/model.onnx" not in {record.path for record in component.files}:
            raise PackageError(f"{folder}: {MANIFEST} lists no {name}/model.onnx")
    return manifest


def family_name(unet: Mapping[str, Any], components: Container[str], latent_channels: int) -> str:
    """What a kind of model is called, from the UNet's configuration and what stands beside it."""
    name = "latent-consistency" if unet.get("time_cond_proj_dim") else "stable-diffusion"
    if "text_encoder_2" in components:
        name += "-xl" if "text_encoder" in components else "-xl-refiner"
    inpaints = int(unet.get("in_channels") or latent_channels) > latent_channels
    return f"{name}-inpainting" if inpaints else name


def _records(entries: list[dict[str, Any]]) -> tuple[FileRecord, ...]:
    return tuple(FileRecord(str(e["path"]), int(e["size"]), str(e["sha256"])) for e in entries)


def _specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(e["name"]), str(e["dtype"]), tuple(e["shape"])) for e in entries)


def _figures(values: Mapping[str, Any]) -> dict[str, Any]:
    if not all(isinstance(value, (int, float)) for k, value in values.items() if k != "metric"):
        raise TypeError("verification must hold numbers")
    return dict(values)
