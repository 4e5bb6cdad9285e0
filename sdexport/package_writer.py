"""What the manifest of a new package says, from its checkpoint and the files that were written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines.files import sha256_of
from sdexport.graphs.precision import Conversion
from sdexport.graphs.wrappers import Part
from sdexport.runtime.packages.manifest import MANIFEST, ComponentRecord, FileRecord, Manifest


def describe_component(folder: Path, part: Part, change: Conversion, opset: int) -> ComponentRecord:
    """A component that was traced to `folder`, and the graphs beside its own."""
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
    """All of a package, once every file but the manifest is in its folder.

    Args:
      tools: versions of what made it. preview: see Manifest.
    """
    vae, downscale = checkpoint.vae, checkpoint.downscale
    height, width = checkpoint.sample_size
    return Manifest(
        family=checkpoint.family.name,
        source=checkpoint.source,
        latent_channels=vae.latent_channels,
        downscale=downscale,
        scaling_factor=vae.scaling_factor,
        default_size=(height * downscale, width * downscale),
        prediction_type=str(checkpoint.scheduler_config.get("prediction_type", "epsilon")),
        components=components,
        preview=preview,
        files=_records(folder, except_for=set(components)),
        tools=tools,
    )


def write(manifest: Manifest, folder: Path) -> None:
    """Write sdexport.json, last of all: now the folder is a package."""
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _graph_files(folder: Path) -> list[Path]:
    """model.onnx first, then its data, then the graphs beside it."""
    return sorted(folder.glob("*.onnx*"), key=lambda f: (not f.name.startswith("model."), f.name))


def _record(folder: Path, file: Path) -> FileRecord:
    return FileRecord(file.relative_to(folder).as_posix(), file.stat().st_size, sha256_of(file))


def _records(folder: Path, *, except_for: set[str]) -> tuple[FileRecord, ...]:
    """Everything that no component lists: configurations, tokenizer, references."""
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    rest = (f for f in files if f.parent.name not in except_for or not f.suffix.startswith(".onnx"))
    return tuple(_record(folder, f) for f in sorted(rest, key=lambda f: f.as_posix()))
