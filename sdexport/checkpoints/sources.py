"""What to export: a folder, a hub id or a single file, and the changes to make to it.

A changed checkpoint is a temporary folder of configurations and a function that loads its modules,
so that the exporter handles one kind of checkpoint. The folder is deleted with the checkpoint.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import read_config, update_config
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.file_prediction import (
    check_prediction_type,
    check_timestep_spacing,
    warn_about_name,
)
from sdexport.checkpoints.single_file import SingleFile
from sdexport.engines.errors import CheckpointError, InvalidArgumentError, SDExportError
from sdexport.engines.exit_actions import UNDO, delete
from sdexport.runtime.models.components import SAFETY_CHECKER

logger = logging.getLogger(__name__)

Loader = Callable[[str], Any]
_DDIM = "DDIMScheduler"
_CONFIG_SUFFIXES = (".json", ".txt")
_LARGEST_CONFIG = 50_000_000


@dataclass(frozen=True)
class Options:
    """How to read a checkpoint, and what to change in it.

    tokenizer: a folder, for a single file.
    allow_pickle: read the weights of .ckpt and .bin files.
    variant: of a folder's weights, such as "fp16".
    prediction_type: "epsilon", "v_prediction" or "sample", if the checkpoint does not say.
    timestep_spacing: "leading", "trailing" or "linspace", if the checkpoint says another.
    ema: take a single file's averaged weights.
    vae: a folder or file that replaces the VAE.
    lora: each PATH or PATH:SCALE, merged one after another.
    embedding: each PATH or PATH:WORD, added to tokenizer and text encoder.
    no_safety_checker: leave it out.
    """

    tokenizer: Path | None = None
    allow_pickle: bool = False
    variant: str | None = None
    prediction_type: str | None = None
    timestep_spacing: str | None = None
    ema: bool = False
    vae: Path | None = None
    lora: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    no_safety_checker: bool = False

    @property
    def changes(self) -> set[str]:
        """The names of the options that are set, except those that only choose files."""
        set_ = {f.name for f in fields(self) if getattr(self, f.name) not in (None, (), False)}
        return set_ - {"allow_pickle", "variant", "no_safety_checker"}


def open_source(
    source: str | Path, *, revision: str | None = None, options: Options | None = None
) -> Checkpoint:
    """Find and check a checkpoint, with the changes that the options specify.

    Args:
      source: a diffusers folder, a hub id, or a single file.
      revision: of a hub id.
    Raises: FileNotFoundError: no such folder or file. CheckpointError: one of the files is damaged,
      incomplete or not supported. InvalidArgumentError: options that do not fit the source.
      ConnectionError: the hub cannot be reached.
    """
    options = options or Options()
    is_file = Path(source).is_file()
    _check_options(source, revision, options, is_file=is_file)
    if not is_file and not options.changes:
        return _open_folder(source, revision, options)
    folder = Path(tempfile.mkdtemp(prefix="sdexport-"))
    unregister = UNDO.add(partial(delete, folder))
    try:
        if is_file:
            draft = _from_file(source, folder, options)
        else:
            draft = _from_folder(source, folder, revision, options)
        for change in (_change_scheduler, _replace_vae, _merge_adapters):
            draft = change(draft, options)
        checkpoint = Checkpoint.open(
            folder,
            loader=draft.loader,
            origin=draft.origin,
            label=str(source),
            no_safety_checker=options.no_safety_checker,
        )
    except BaseException as error:
        _delete_folder(folder, unregister)
        if isinstance(error, SDExportError) and str(folder) in str(error):
            raise type(error)(str(error).replace(str(folder), str(source))) from error
        raise
    weakref.finalize(checkpoint, _delete_folder, folder, unregister)
    return checkpoint


def _delete_folder(folder: Path, unregister: Callable[[], object]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    unregister()


@dataclass(frozen=True)
class _Draft:
    """A checkpoint that is being changed: its configurations, how to load a module, its origin."""

    folder: Path
    loader: Loader
    origin: Mapping[str, str]


def _check_options(
    source: str | Path, revision: str | None, options: Options, *, is_file: bool
) -> None:
    check_prediction_type(options.prediction_type)
    check_timestep_spacing(options.timestep_spacing)
    for name, value in (("revision", revision), ("variant", options.variant)):
        if is_file and value is not None:
            raise InvalidArgumentError(f"{source} is a file; omit --{name}")
    for name in () if is_file else ("tokenizer", "ema"):
        if name in options.changes:
            raise InvalidArgumentError(f"{source} is not a single file; omit --{name}")


def _from_file(source: str | Path, folder: Path, options: Options) -> _Draft:
    opened = SingleFile.open(
        source,
        allow_pickle=options.allow_pickle,
        prediction_type=options.prediction_type,
        ema=options.ema,
    )
    warn_about_name(
        opened.file,
        opened.family.scheduler,
        spacing=options.timestep_spacing,
        prediction=options.prediction_type,
    )
    if not (opened.has_vae or options.vae):
        raise CheckpointError(f"{source} holds no VAE; give --vae FOLDER_OR_FILE")
    opened.write_configs(folder, options.tokenizer)
    origin = {"type": "file", "sha256": opened.file.sha256()}
    return _Draft(folder, opened.load, origin | ({"weights": "ema"} if options.ema else {}))


def _open_folder(source: str | Path, revision: str | None, options: Options) -> Checkpoint:
    return Checkpoint.open(
        source,
        revision=revision,
        variant=options.variant,
        allow_pickle=options.allow_pickle,
        no_safety_checker=options.no_safety_checker,
    )


def _from_folder(
    source: str | Path, folder: Path, revision: str | None, options: Options
) -> _Draft:
    base = _open_folder(source, revision, options)
    for file in (*base.folder.glob("*.json"), *base.folder.glob("*/*")):
        if file.suffix in _CONFIG_SUFFIXES and file.stat().st_size < _LARGEST_CONFIG:
            target = folder / file.relative_to(base.folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    if SAFETY_CHECKER.source not in base.configs:
        shutil.rmtree(folder / SAFETY_CHECKER.source, ignore_errors=True)
    return _Draft(folder, base.load, base.source)


def _change_scheduler(draft: _Draft, options: Options) -> _Draft:
    changes = {
        key: value
        for key in ("prediction_type", "timestep_spacing")
        if (value := getattr(options, key)) is not None
    }
    if changes:
        update_config(draft.folder / "scheduler" / "scheduler_config.json", changes)
    _replace_pndm(draft.folder)
    return draft


def _replace_pndm(folder: Path) -> None:
    """PNDM, the default of SD 1, has no formula for models that predict the sample; DDIM has."""
    path = folder / "scheduler" / "scheduler_config.json"
    config, index = read_config(path), read_config(folder / "model_index.json")
    entry = index.get("scheduler")
    name = entry[-1] if isinstance(entry, list) and entry else config.get("_class_name")
    if name == "PNDMScheduler" and config.get("prediction_type") == "sample":
        logger.warning(
            "PNDMScheduler cannot run a model that predicts the sample; %s is used instead", _DDIM
        )
        update_config(path, {"_class_name": _DDIM, "clip_sample": False})
        update_config(folder / "model_index.json", {"scheduler": ["diffusers", _DDIM]})


def _replace_vae(draft: _Draft, options: Options) -> _Draft:
    if options.vae is None:
        return draft
    from sdexport.checkpoints.replacement_vae import ReplacementVae

    vae = ReplacementVae.open(options.vae, draft.folder, allow_pickle=options.allow_pickle)
    vae.write_config(draft.folder)

    def load(part: str) -> Any:
        return vae.load() if part == "vae" else draft.loader(part)

    origin = dict(draft.origin)
    for number, file in enumerate(vae.files, 1):
        origin["vae.sha256" if number == 1 else f"vae.{number}.sha256"] = file.sha256()
    return replace(draft, loader=load, origin=origin)


def _merge_adapters(draft: _Draft, options: Options) -> _Draft:
    if not options.lora and not options.embedding:
        return draft
    from sdexport.checkpoints.adapters import merge_adapters

    load, merged = merge_adapters(
        draft.folder,
        draft.loader,
        loras=options.lora,
        embeddings=options.embedding,
        allow_pickle=options.allow_pickle,
    )
    return replace(draft, loader=load, origin={**draft.origin, **merged})
