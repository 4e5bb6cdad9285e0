"""From a checkpoint to a package: trace each component and record its reference outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import read_config
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.diffusers_layout import tokenizer_folder
from sdexport.checkpoints.modules import free_weights
from sdexport.checkpoints.safety_checker_source import write_safety_checker_configs
from sdexport.checkpoints.source_index import package_index
from sdexport.checkpoints.sources import Options, open_source
from sdexport.engines.errors import CheckpointError
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
from sdexport.graphs.adapter_graphs import TracedGraph, kinds_of, write_adapter_graphs
from sdexport.graphs.precision import conversion, verifying_backend
from sdexport.graphs.token_graphs import write_token_graphs
from sdexport.graphs.trace import trace
from sdexport.graphs.wrappers import Part, parts
from sdexport.package_folder import package_folder
from sdexport.package_writer import describe, describe_component, write
from sdexport.preview_fit import fit_preview
from sdexport.runtime.models.components import AdapterKind, Role
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.manifest import ComponentRecord, Manifest
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.verification.adapter_reference import record_adapter_graphs
from sdexport.verification.reference import (
    ImageRecorder,
    TorchSession,
    record_component,
    record_float32_outputs,
    record_token_graphs,
)
from sdexport.verification.verifier import REFERENCE_IMAGE

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def export(
    source: str | Path,
    destination: str | Path,
    *,
    opset: int = DEFAULT_OPSET,
    precision: str = "fp32",
    revision: str | None = None,
    options: Options | None = None,
    lora_inputs: bool = False,
    controlnet_inputs: bool = False,
    t2i_adapter_inputs: bool = False,
    ip_adapter_inputs: bool = False,
    force: bool = False,
    progress: Progress = lambda component, stage, total: None,
    on_memory_need: Callable[[int], object] = lambda need: None,
) -> Manifest:
    """Export a checkpoint to a package.

    The package is written to a temporary folder next to its destination and renamed at the end, so
    an interrupted export leaves no package. It is verified before that, if a backend that supports
    its precision is installed.

    Args:
      source: a diffusers folder, a hub id, or a single file.
      destination: the folder to create.
      opset: 18..24; from 23 on attention and group normalisation are single nodes.
      precision: "fp32", "fp16", "bf16" or "int8"; see sdexport.graphs.precision.
      revision: of a hub id.
      options: how to read the source, and what to merge into it.
      lora_inputs: also write graphs of the UNet and the text encoders that take LoRAs at run time.
      controlnet_inputs: also write a graph of the UNet that takes ControlNets at run time.
      t2i_adapter_inputs, ip_adapter_inputs: also write a graph of the UNet that takes T2I-Adapters,
        or IP-Adapters, at run time.
      force: replace the destination, if it is a package or an empty folder.
      progress: see Progress.
      on_memory_need: called with the bytes of memory that the export will need at most, before it
        loads weights; it may raise an error.
    Returns: the manifest that was written.
    Raises: FileNotFoundError, CheckpointError, ConnectionError: see open_source. FileExistsError:
      the destination exists. InvalidArgumentError: opset or precision. VerificationError: the
      graphs do not reproduce PyTorch's outputs.

    Example:
        >>> import sdexport
        >>> manifest = sdexport.export("checkpoint", "half", precision="fp16")
        >>> manifest.family, manifest.components["unet"].precision
        ('stable-diffusion', 'fp16')
    """
    destination = checked_destination(destination, opset, precision, force=force)
    checkpoint = open_source(source, revision=revision, options=options)
    on_memory_need(_memory_need(checkpoint))
    inputs = {
        AdapterKind.LORA: lora_inputs,
        AdapterKind.CONTROLNET: controlnet_inputs,
        AdapterKind.T2I_ADAPTER: t2i_adapter_inputs,
        AdapterKind.IP_ADAPTER: ip_adapter_inputs,
    }
    adapters = frozenset(kind for kind, is_wanted in inputs.items() if is_wanted)
    with package_folder(destination, force=force) as folder, tracing(checkpoint.label):
        return _write_package(checkpoint, folder, opset, precision, progress, adapters=adapters)


def _write_package(
    checkpoint: Checkpoint,
    folder: Path,
    opset: int,
    precision: str,
    progress: Progress,
    *,
    adapters: frozenset[AdapterKind],
) -> Manifest:
    _copy_configuration(checkpoint, folder)
    tokenizers = {part: _tokenizer(checkpoint, folder, part) for part in checkpoint.text_encoders}
    recorder = ImageRecorder(checkpoint, tokenizers)
    backend = verifying_backend(precision)
    total = _count_stages(checkpoint, recorder, verifies=backend is not None)

    def begin(component: str, stage: str) -> None:
        progress(component, stage, total)

    components, preview = _write_components(
        checkpoint, folder, opset, precision, begin, recorder, adapters=adapters
    )
    record_float32_outputs(folder, {name: c.precision for name, c in components.items()})
    manifest = describe(checkpoint, folder, components, tools=tools_used(), preview=preview)
    if backend is not None:
        surveys = GraphSurveys(folder)
        package = Package(
            folder, manifest, checkpoint.scheduler_config, checkpoint.index, surveys=surveys
        )
        figures = verified(package, backend, begin)
        manifest = replace(manifest, verification=figures, verified_with=backend)
    write(manifest, folder)
    return manifest


def _memory_need(checkpoint: Checkpoint) -> int:
    """Bytes that the export needs at most: one component in float32 at a time, and its trace."""
    return TRACING + 4 * max(map(checkpoint.count_weights, checkpoint.configs))


def _count_stages(checkpoint: Checkpoint, recorder: ImageRecorder, *, verifies: bool) -> int:
    """Loads, records, traces and verifications, that of the image included."""
    components = parts(checkpoint.configs)
    loads = len(checkpoint.configs) + recorder.starts_from_image
    checks = len(components) + 1 if verifies else 0
    return loads + 2 * len(components) + checks


def _tokenizer(checkpoint: Checkpoint, folder: Path, part: str) -> ClipTokenizer:
    """The copied tokenizer of a text encoder, checked against its configuration."""
    tokenizer = ClipTokenizer.from_folder(folder / tokenizer_folder(part), error=CheckpointError)
    text = checkpoint.configs[part]
    if tokenizer.vocab_size > text.vocab_size or (
        tokenizer.max_length > text.max_position_embeddings
    ):
        raise CheckpointError(
            f"{checkpoint.label}: the tokenizer ({tokenizer.vocab_size} ids, rows of "
            f"{tokenizer.max_length}) does not fit {part} ({text.vocab_size} ids, "
            f"rows of {text.max_position_embeddings})"
        )
    return tokenizer


def _write_components(
    checkpoint: Checkpoint,
    folder: Path,
    opset: int,
    precision: str,
    begin: Begin,
    recorder: ImageRecorder,
    *,
    adapters: frozenset[AdapterKind],
) -> tuple[dict[str, ComponentRecord], tuple[tuple[float, ...], ...]]:
    """Trace and record one component after the other, with one module in memory at a time.

    Returns: the manifest's entries of the components, and the colors for previews.
    """
    components = {}
    preview: tuple[tuple[float, ...], ...] = ()
    vae = checkpoint.family.with_role(Role.VAE_ENCODER)
    loaded: tuple[str, Any] = ("", None)
    if recorder.starts_from_image:
        begin(vae.name, "load")
        loaded = (vae.source, checkpoint.load(vae.source))
        recorder.start(loaded[1])
    for part in parts(checkpoint.configs):
        if loaded[0] != part.source:
            free_weights(loaded[1])
            begin(part.name, "load")
            loaded = (part.source, checkpoint.load(part.source))
        module = loaded[1]
        begin(part.name, "record")
        kinds = kinds_of(part.role, adapters)
        _record(part, module, folder / "reference", recorder, kinds)
        if part.role is Role.VAE_DECODER:
            preview = fit_preview(module, checkpoint.latent_space)
        begin(part.name, "trace")
        config = checkpoint.configs[part.source]
        change = conversion(precision, part.component, checkpoint.family, config)
        path = folder / part.name / "model.onnx"
        notes = notes_of(checkpoint.source, checkpoint.family, part.name, change.precision)
        layers = trace(
            part,
            module,
            path,
            opset=opset,
            change=change,
            notes=notes,
            find_lora_layers=bool(kinds),
            data_file=bool(kinds),
        )
        if part.role is Role.TEXT_ENCODER:
            write_token_graphs(path)
        write_adapter_graphs(path, part.role, TracedGraph(layers, config), kinds)
        _copy_json(
            checkpoint.folder / part.source / "config.json", folder / part.name / "config.json"
        )
        if part.role is Role.SAFETY_CHECKER:
            write_safety_checker_configs(checkpoint.folder, module, folder / part.name)
        components[part.name] = describe_component(folder, part, change, opset)
    free_weights(loaded[1])
    return components, preview


def _record(
    part: Part,
    module: Any,
    folder: Path,
    recorder: ImageRecorder,
    kinds: frozenset[AdapterKind],
) -> None:
    """Write the reference outputs of a component, and go on with the reference image."""
    with TorchSession(part, module) as session:
        is_text = part.role is Role.TEXT_ENCODER
        ids = recorder.input_ids(part.name) if is_text else None
        record_component(session, part, folder / f"{part.name}.npz", ids)
        if ids is not None:
            record_token_graphs(session, module, folder, ids)
            recorder.encode(part.name, session)
        record_adapter_graphs(session, part, module, folder, kinds, ids)
    if part.role is Role.DENOISER:
        recorder.denoise(module)
    elif part.role is Role.VAE_DECODER:
        recorder.decode(module, folder / f"{REFERENCE_IMAGE}.npz")


def _copy_configuration(checkpoint: Checkpoint, folder: Path) -> None:
    for where in map(tokenizer_folder, checkpoint.text_encoders):
        (folder / where).mkdir()
        for name in _TOKENIZER_FILES:
            source, target = checkpoint.folder / where / name, folder / where / name
            if source.is_file():
                copy = _copy_json if name == "tokenizer_config.json" else shutil.copyfile
                copy(source, target)
    index = package_index(checkpoint.index, checkpoint.configs)
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.scheduler_config)


def _copy_json(source: Path, destination: Path) -> None:
    write_json(destination, read_config(source))
