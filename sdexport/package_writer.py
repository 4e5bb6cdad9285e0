"""The manifest of a new package, from its checkpoint and the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdexport.checkpoints.adapter_source import AdapterCheckpoint
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines.files import sha256_of, write_atomically
from sdexport.graphs.precision import Conversion
from sdexport.graphs.wrappers import Part
from sdexport.runtime.packages.manifest import (
    MANIFEST,
    OF_MODELS,
    ComponentRecord,
    FileRecord,
    Manifest,
)


def describe_component(folder: Path, part: Part, change: Conversion, opset: int) -> ComponentRecord:
    """The manifest's entry of a component that was traced to `folder`, with its token graphs."""
    return ComponentRecord(
        files=tuple(_record(folder, file) for file in _graph_files(folder / part.name)),
        precision=change.precision,
        opset=opset,
        inputs=part.inputs,
        outputs=part.outputs,
        nodes=change.nodes,
    )


def describe(
    checkpoint: Checkpoint,
    folder: Path,
    components: Mapping[str, ComponentRecord],
    *,
    tools: Mapping[str, str],
    preview: tuple[tuple[float, ...], ...] | None = None,
) -> Manifest:
    """The manifest of a package whose other files are all in `folder`.

    Args:
      tools: versions of the tools that made it. preview: see Manifest.
    """
    space = checkpoint.latent_space
    height, width = checkpoint.sample_size
    return Manifest(
        family=checkpoint.family.name,
        source=checkpoint.source,
        latent_channels=space.channels,
        downscale=space.downscale,
        scaling_factor=space.scaling_factor,
        latents_mean=space.mean,
        latents_std=space.std,
        default_size=(height * space.downscale, width * space.downscale),
        prediction_type=str(checkpoint.scheduler_config.get("prediction_type", "epsilon")),
        components=components,
        preview=preview,
        files=_records(folder, except_for=set(components)),
        tools=tools,
    )


def describe_adapter(
    checkpoint: AdapterCheckpoint,
    folder: Path,
    components: Mapping[str, ComponentRecord],
    *,
    tools: Mapping[str, str],
) -> Manifest:
    """The manifest of an adapter's package whose other files are all in `folder`."""
    return Manifest(
        **OF_MODELS,
        family=checkpoint.family.name,
        source=checkpoint.source,
        latent_channels=checkpoint.latent_channels,
        downscale=checkpoint.downscale,
        components=components,
        files=_records(folder, except_for=set(components)),
        tools=tools,
    )


def write(manifest: Manifest, folder: Path) -> None:
    """Write sdexport.json in place of that of an unfinished export."""
    write_atomically(folder / MANIFEST, manifest.to_json())


def _graph_files(folder: Path) -> list[Path]:
    """model.onnx first, then its data, then the token graphs."""
    return sorted(folder.glob("*.onnx*"), key=lambda f: (not f.name.startswith("model."), f.name))


def _record(folder: Path, file: Path) -> FileRecord:
    return FileRecord(file.relative_to(folder).as_posix(), file.stat().st_size, sha256_of(file))


def _records(folder: Path, *, except_for: set[str]) -> tuple[FileRecord, ...]:
    """The files that no component lists: configurations, tokenizers, reference outputs."""
    found = (f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    files = (f for f in found if f != folder / MANIFEST)
    rest = (f for f in files if f.parent.name not in except_for or not f.suffix.startswith(".onnx"))
    return tuple(_record(folder, f) for f in sorted(rest, key=lambda f: f.as_posix()))
