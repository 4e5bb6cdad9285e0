"""From an adapter to a package of its own: trace its graphs and record their reference outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from sdexport.checkpoints.adapter_source import AdapterCheckpoint, open_adapter
from sdexport.checkpoints.base_model import BaseOptions
from sdexport.checkpoints.modules import free_weights
from sdexport.export_steps import (
    DEFAULT_OPSET,
    TRACING,
    Begin,
    Progress,
    checked_destination,
    notes_of,
    tools_used,
    tracing,
    verified,
    write_json,
)
from sdexport.graphs.adapter_parts import adapter_parts, base_of
from sdexport.graphs.precision import conversion, verifying_backend
from sdexport.graphs.trace import trace
from sdexport.package_folder import package_folder
from sdexport.package_writer import describe_adapter, describe_component, write
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.listed_files import REFERENCE
from sdexport.runtime.packages.manifest import ComponentRecord, Manifest
from sdexport.runtime.packages.package import Package
from sdexport.verification.reference import (
    TorchSession,
    record_component,
    record_float32_outputs,
)


def export_adapter(
    source: str | Path,
    destination: str | Path,
    *,
    opset: int = DEFAULT_OPSET,
    precision: str = "fp32",
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    image_encoder: str | Path | None = None,
    base: str | Path | None = None,
    base_revision: str | None = None,
    base_variant: str | None = None,
    base_ema: bool = False,
    force: bool = False,
    progress: Progress = lambda component, stage, total: None,
    on_memory_need: Callable[[int], object] = lambda need: None,
) -> Manifest:
    """Export an adapter, such as a ControlNet, to a package of its own.

    As with `sdexport.export`, the package appears complete or not at all, and is verified before.

    Args:
      source: a diffusers folder with config.json, a hub id, or a single file.
      destination: the folder to create.
      opset, precision: see `sdexport.export`; they need not be those of the model's package.
      revision: of a hub id. variant: of a folder's weights, such as "fp16".
      allow_pickle: also read .pth, .pt and .bin files, weights only.
      image_encoder: of an IP-Adapter, the folder of its image encoder; default image_encoder/ in
        the file's folder or the one above.
      base: of a ControlNet-XS, the checkpoint of the model with whose UNet it is fused: a diffusers
        folder, a hub id, or a single file. Images are generated with a package of that model.
      base_revision, base_variant: the same of the base. base_ema: take a single file's averaged
        weights, if the model was exported with them.
      force, progress, on_memory_need: see `sdexport.export`.
    Returns: the manifest that was written.
    Raises: see open_adapter, and `sdexport.export`.
    """
    destination = checked_destination(destination, opset, precision, force=force)
    checkpoint = open_adapter(
        source,
        revision=revision,
        variant=variant,
        allow_pickle=allow_pickle,
        image_encoder=image_encoder,
        base=base,
        base_options=BaseOptions(base_revision, base_variant, base_ema),
    )
    on_memory_need(TRACING + 4 * checkpoint.weights)
    with package_folder(destination, force=force) as folder, tracing(checkpoint.label):
        return _write_package(checkpoint, folder, opset, precision, progress)


def _write_package(
    checkpoint: AdapterCheckpoint, folder: Path, opset: int, precision: str, progress: Progress
) -> Manifest:
    backend = verifying_backend(precision)
    count = len(adapter_parts(checkpoint.family, checkpoint.configs))
    total = len(checkpoint.configs) + (3 if backend else 2) * count

    def begin(component: str, stage: str) -> None:
        progress(component, stage, total)

    components = _write_components(checkpoint, folder, opset, precision, begin)
    record_float32_outputs(folder, {name: c.precision for name, c in components.items()})
    manifest = describe_adapter(checkpoint, folder, components, tools=tools_used())
    if backend is not None:
        package = Package(folder, manifest, {}, {}, surveys=GraphSurveys(folder))
        figures = verified(package, backend, begin)
        manifest = replace(manifest, verification=figures, verified_with=backend)
    write(manifest, folder)
    return manifest


def _write_components(
    checkpoint: AdapterCheckpoint, folder: Path, opset: int, precision: str, begin: Begin
) -> Mapping[str, ComponentRecord]:
    components = {}
    loaded = ""
    module = None
    for part in adapter_parts(checkpoint.family, checkpoint.configs):
        if loaded != part.source:
            free_weights(module)
            begin(part.name, "load")
            loaded, module = part.source, checkpoint.load(part.source)
        begin(part.name, "record")
        for recorded in (part, *base_of(part, checkpoint.configs)):
            with TorchSession(recorded, module) as session:
                path = folder / REFERENCE / f"{recorded.name}.npz"
                record_component(session, recorded, path)
        begin(part.name, "trace")
        config = checkpoint.configs[part.source]
        change = conversion(precision, part.component, checkpoint.family, config)
        notes = notes_of(checkpoint.source, checkpoint.family, part.name, change.precision)
        path = folder / part.name / "model.onnx"
        trace(part, module, path, opset=opset, change=change, notes=notes)
        write_json(path.with_name("config.json"), checkpoint.written_configs[part.source])
        components[part.name] = describe_component(folder, part, change, opset)
    free_weights(module)
    return components
