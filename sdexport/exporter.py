"""From a checkpoint to a package: trace each component and record its reference outputs."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import read_config, write_config
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.diffusers_layout import tokenizer_folder
from sdexport.checkpoints.modules import free_weights
from sdexport.checkpoints.sources import Options, open_source
from sdexport.engines import EngineError
from sdexport.engines.errors import CheckpointError, VerificationError
from sdexport.graphs.precision import check_precision, conversion, verifying_backend
from sdexport.graphs.token_graphs import write_token_graphs
from sdexport.graphs.trace import trace
from sdexport.graphs.wrappers import Part, parts
from sdexport.package_writer import describe, describe_component, write
from sdexport.preview_fit import fit_preview
from sdexport.runtime.models.components import Role
from sdexport.runtime.packages.manifest import MANIFEST, ComponentRecord, Manifest
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.runtime.version import __version__
from sdexport.verification.reference import (
    ImageRecorder,
    TorchSession,
    record_component,
    record_token_graphs,
)
from sdexport.verification.report import Check
from sdexport.verification.verifier import REFERENCE_IMAGE, verify_package

DEFAULT_OPSET = 23
OPSETS = range(18, 25)
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "numpy")

_MAPPED: dict[str, Any] = {"optimization": "none", "prepacking": False}
"""Has ONNX Runtime compute with the mapped weights. Its optimiser would first rearrange all of
them, and turn half into float32: 19 s and 5.9 GB for SD 1.5's UNet, in place of 3 and 3.7."""

Progress = Callable[[str, str, int], object]
"""Called with a component, the stage that begins, and how many stages there are in all."""
_Begin = Callable[[str, str], object]


def export(
    source: str | Path,
    destination: str | Path,
    *,
    opset: int = DEFAULT_OPSET,
    precision: str = "fp32",
    revision: str | None = None,
    options: Options | None = None,
    force: bool = False,
    progress: Progress = lambda component, stage, total: None,
) -> Manifest:
    """Export a checkpoint to a package.

    The package is built beside its destination and renamed into place, so an export that is
    stopped leaves no package. It is verified first if a backend that takes its precision is
    installed.

    Args:
      source: a diffusers folder, a hub id, or a single file.
      destination: the folder to make.
      options: how to read the source, and what to change in it.
      opset: 18..24; from 23 on attention and group normalisation are single nodes.
      precision: one of sdexport.graphs.precision.PRECISIONS.
      force: replace what is at the destination, if that is a package or an empty folder.
    Raises: FileNotFoundError, CheckpointError, ConnectionError: see open_source. FileExistsError:
      the destination exists. VerificationError: the package does not answer as PyTorch does.
    """
    if opset not in OPSETS:
        raise ValueError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
    check_precision(precision, opset)
    destination = Path(os.path.realpath(destination))
    _check_destination(destination, force=force)
    checkpoint = open_source(source, revision=revision, options=options)
    destination.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        beside.chmod(0o777 & ~_umask())
        try:
            manifest = _write_package(checkpoint, beside, opset, precision, progress)
        except RuntimeError as error:  # PyTorch's own, and its exporter's
            if isinstance(error, EngineError):
                raise
            raise ValueError(
                f"{checkpoint.label}: PyTorch cannot run or trace it: {str(error)[:300]}"
            ) from error
        _move_into_place(beside, destination, force=force)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


def _write_package(
    checkpoint: Checkpoint, folder: Path, opset: int, precision: str, progress: Progress
) -> Manifest:
    _copy_configuration(checkpoint, folder)
    tokenizers = {part: _tokenizer(checkpoint, folder, part) for part in checkpoint.text_encoders}
    recorder = ImageRecorder(checkpoint, tokenizers)
    backend = verifying_backend(precision)
    total = _count_stages(checkpoint, recorder, verifies=backend is not None)

    def begin(component: str, stage: str) -> None:
        progress(component, stage, total)

    components, preview = _write_components(checkpoint, folder, opset, precision, begin, recorder)
    tools = {"sdexport": __version__, "python": platform.python_version()}
    tools |= {name: metadata.version(name) for name in _TOOLS}
    manifest = describe(checkpoint, folder, components, tools=tools, preview=preview)
    if backend is not None:
        package = Package(folder, manifest, checkpoint.scheduler_config, checkpoint.index)
        figures = _verified(package, backend, begin)
        manifest = replace(manifest, verification=figures, verified_with=backend)
    write(manifest, folder)
    return manifest


def _count_stages(checkpoint: Checkpoint, recorder: ImageRecorder, *, verifies: bool) -> int:
    """Loads, records, traces and verifications, that of the image included."""
    components = parts(checkpoint.configs)
    loads = len(checkpoint.configs) + recorder.starts_from_image
    checks = len(components) + 1 if verifies else 0
    return loads + 2 * len(components) + checks


def _tokenizer(checkpoint: Checkpoint, folder: Path, part: str) -> ClipTokenizer:
    """The copied tokenizer of a text encoder, found to fit it."""
    tokenizer = ClipTokenizer.from_folder(folder / tokenizer_folder(part), error=CheckpointError)
    text = checkpoint.configs[part]
    if tokenizer.vocab_size > text.vocab_size or (
        tokenizer.max_length > text.max_position_embeddings
    ):
        raise ValueError(
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
    begin: _Begin,
    recorder: ImageRecorder,
) -> tuple[dict[str, ComponentRecord], tuple[tuple[float, ...], ...]]:
    """Trace and record one component after the other, with one module in memory at a time.

    Returns: the components, and the colours for previews.
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
        _record(part, module, folder / "reference", recorder)
        if part.role is Role.VAE_DECODER:
            preview = fit_preview(module, checkpoint.vae.scaling_factor, checkpoint.downscale)
        begin(part.name, "trace")
        config = checkpoint.configs[part.source]
        change = conversion(precision, part.component, checkpoint.family, config)
        path = folder / part.name / "model.onnx"
        notes = _notes(checkpoint, part.name, change.precision)
        trace(part, module, path, opset=opset, change=change, notes=notes)
        if part.role is Role.TEXT_ENCODER:
            write_token_graphs(path)
        _copy_json(
            checkpoint.folder / part.source / "config.json", folder / part.name / "config.json"
        )
        components[part.name] = describe_component(folder, part, change, opset)
    free_weights(loaded[1])
    return components, preview


def _record(part: Part, module: Any, folder: Path, recorder: ImageRecorder) -> None:
    """Write the reference outputs of a component, and go on with the reference image."""
    with TorchSession(part, module) as session:
        is_text = part.role is Role.TEXT_ENCODER
        ids = recorder.input_ids(part.name) if is_text else None
        record_component(session, part, folder / f"{part.name}.npz", ids)
        if ids is not None:
            record_token_graphs(session, module, folder, ids)
            recorder.encode(part.name, session)
    if part.role is Role.DENOISER:
        recorder.denoise(module)
    elif part.role is Role.VAE_DECODER:
        recorder.decode(module, folder / f"{REFERENCE_IMAGE}.npz")


def _notes(checkpoint: Checkpoint, component: str, precision: str) -> dict[str, str]:
    """What a graph says of itself: how it came to be, with no path and no time of day."""
    source = {f"source.{key}": value for key, value in checkpoint.source.items()}
    of_graph = {"component": component, "family": checkpoint.family.name, "precision": precision}
    return {"sdexport": __version__} | of_graph | source


def _copy_configuration(checkpoint: Checkpoint, folder: Path) -> None:
    for where in map(tokenizer_folder, checkpoint.text_encoders):
        (folder / where).mkdir()
        for name in _TOKENIZER_FILES:
            source, target = checkpoint.folder / where / name, folder / where / name
            if source.is_file():
                copy = _copy_json if name == "tokenizer_config.json" else shutil.copyfile
                copy(source, target)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        _copy_json(checkpoint.folder / name, folder / name)


def _copy_json(source: Path, destination: Path) -> None:
    """A configuration without the path it was once loaded from."""
    values = read_config(source)
    for key in ("_name_or_path", "name_or_path"):
        values.pop(key, None)
    write_config(destination, values)


def _verified(package: Package, backend: str, begin: _Begin) -> dict[str, Any]:
    """What verification measured, to two digits: the last ones vary with the machine."""
    options = _MAPPED if backend == "onnxruntime" else {}
    checks = verify_package(
        package,
        backend,
        hashes=False,
        progress=lambda what: begin(what, "verify"),
        low_memory=True,
        **options,
    )
    failed = [f"{c.name} {c.output}: {c.verdict}" for c in checks if not c.passed]
    if failed:
        raise VerificationError(
            f"the exported graphs do not answer as PyTorch does; {'; '.join(failed)}"
        )
    keys = {"image": "picture"}  # in the manifest
    return {f"{keys.get(c.name, c.name)}.{c.output}": _figures(c) for c in checks}


def _figures(check: Check) -> dict[str, float | str]:
    return {
        "metric": check.metric,
        "error": float(f"{check.error:.1e}"),
        "cosine": float(f"{check.cosine:.6f}"),
        "bound": check.bound,
    }


def _check_destination(destination: Path, *, force: bool) -> None:
    if not destination.exists():
        return
    if not force:
        raise FileExistsError(f"{destination} exists; give --force to replace it")
    holds_package = destination.is_dir() and (
        (destination / MANIFEST).is_file() or not any(destination.iterdir())
    )
    if not holds_package:
        raise FileExistsError(f"{destination} exists and is no package; it is not replaced")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _move_into_place(beside: Path, destination: Path, *, force: bool) -> None:
    """Rename; what stood there goes last, when the new package is in its place."""
    old = None
    if destination.exists() and force:
        old = beside.with_name(beside.name + ".old")
        os.replace(destination, old)
    try:
        beside.rename(destination)
    except OSError as error:
        if old is not None:
            os.replace(old, destination)
        if destination.exists():
            raise FileExistsError(f"{destination} appeared meanwhile; it is left alone") from error
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
