"""What to export: a folder, a hub id or a single file, with what is merged into it on the way.

A changed checkpoint is a folder of configurations in a temporary place and a function that loads
its modules, so the exporter sees one kind of checkpoint. The folder goes with the checkpoint.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sdexport.checkpoints.diffusers_folder import TEXT_ENCODERS, Checkpoint, read_json
from sdexport.checkpoints.modules import empty
from sdexport.checkpoints.single_file import PREDICTION_TYPES, SingleFile
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.text.tokenizer import ClipTokenizer

Loader = Callable[[str], Any]
_CONFIGURATION = (".json", ".txt")
_LARGEST_CONFIGURATION = 50_000_000


@dataclass(frozen=True)
class Options:
    """How to read a checkpoint, and what to change in it.

    tokenizer: a folder, for a single file. allow_pickle: read .ckpt and .bin, weights alone.
    prediction_type: of the UNet, where a file does not tell. ema: take a file's averaged weights.
    vae: a folder or file that replaces the VAE. lora: each FILE or FILE:SCALE, merged in turn.
    embedding: each FILE or FILE:WORD, put into tokenizer and text encoder.
    """

    tokenizer: Path | None = None
    allow_pickle: bool = False
    prediction_type: str | None = None
    ema: bool = False
    vae: Path | None = None
    lora: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()


def open_source(
    source: str | Path, *, revision: str | None = None, options: Options | None = None
) -> Checkpoint:
    """Find and check a checkpoint with all that is to be changed in it.

    Args:
      source: a diffusers folder, a hub id, or a single file.
      revision: of a hub id.
    Raises: FileNotFoundError, ValueError, ConnectionError: see Checkpoint.open, SingleFile.open.
    """
    options = options or Options()
    is_file = Path(source).is_file()
    if not is_file:
        for name in ("tokenizer", "ema"):
            if getattr(options, name):
                raise ValueError(f"{source} is no single file; leave out --{name}")
        changes = [
            f.name for f in fields(options) if getattr(options, f.name) not in (None, (), False)
        ]
        if not set(changes) - {"allow_pickle"}:
            return Checkpoint.open(source, revision=revision)
    folder = Path(tempfile.mkdtemp(prefix="sdexport-"))
    try:
        prepare = _prepare_file if is_file else _prepare_folder
        loader, origin = prepare(source, folder, revision, options)
        for change in (_change_prediction, _change_vae, _merge_loras, _add_words):
            loader, origin = change(folder, loader, origin, options)
        checkpoint = Checkpoint.open(folder, loader=loader, origin=origin, label=str(source))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (ValueError, FileNotFoundError)) and str(folder) in str(error):
            raise type(error)(str(error).replace(str(folder), str(source))) from error
        raise
    weakref.finalize(checkpoint, shutil.rmtree, folder, ignore_errors=True)
    return checkpoint


def _prepare_file(
    source: str | Path, folder: Path, revision: str | None, options: Options
) -> tuple[Loader, dict[str, str]]:
    if revision is not None:
        raise ValueError(f"{source} is a file; leave out --revision")
    opened = SingleFile.open(
        source,
        allow_pickle=options.allow_pickle,
        prediction_type=options.prediction_type,
        ema=options.ema,
    )
    if not (opened.has_vae or options.vae):
        raise ValueError(f"{source} holds no VAE; give --vae FOLDER_OR_FILE")
    opened.write_configs(folder, options.tokenizer)
    origin = {"type": "file", "sha256": opened.file.sha256()}
    return opened.load, origin | ({"weights": "ema"} if options.ema else {})


def _prepare_folder(
    source: str | Path, folder: Path, revision: str | None, options: Options
) -> tuple[Loader, dict[str, str]]:
    base = Checkpoint.open(source, revision=revision)
    for file in (*base.folder.glob("*.json"), *base.folder.glob("*/*")):
        if file.suffix in _CONFIGURATION and file.stat().st_size < _LARGEST_CONFIGURATION:
            target = folder / file.relative_to(base.folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    return base.load, dict(base.source)


def _change_prediction(
    folder: Path, loader: Loader, origin: dict[str, str], options: Options
) -> tuple[Loader, dict[str, str]]:
    if options.prediction_type is None:
        return loader, origin
    if options.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction type must be {' or '.join(PREDICTION_TYPES)}, "
            f"got {options.prediction_type!r}"
        )
    update_json(
        folder / "scheduler" / "scheduler_config.json", {"prediction_type": options.prediction_type}
    )
    return loader, origin


def _change_vae(
    folder: Path, loader: Loader, origin: dict[str, str], options: Options
) -> tuple[Loader, dict[str, str]]:
    if options.vae is None:
        return loader, origin
    from sdexport.checkpoints.replacement_vae import OtherVae

    vae = OtherVae.open(options.vae, folder, allow_pickle=options.allow_pickle)

    def load(part: str) -> Any:
        return vae.load() if part == "vae" else loader(part)

    return load, origin | {"vae.sha256": vae.file.sha256()}


def _merge_loras(
    folder: Path, loader: Loader, origin: dict[str, str], options: Options
) -> tuple[Loader, dict[str, str]]:
    if not options.lora:
        return loader, origin
    from sdexport.checkpoints.lora import Lora, parse_lora

    modules = _empty_modules(folder)
    pairs = [parse_lora(text) for text in options.lora]
    loras = [Lora.open(p, s, modules, allow_pickle=options.allow_pickle) for p, s in pairs]

    def load(part: str) -> Any:
        module = loader(part)
        for lora in loras:
            lora.merge_into(part, module)
        return module

    told = {}
    for number, lora in enumerate(loras, 1):
        told[f"lora.{number}.sha256"] = lora.file.sha256()
        told[f"lora.{number}.scale"] = f"{lora.scale:g}"
    return load, origin | told


def _add_words(
    folder: Path, loader: Loader, origin: dict[str, str], options: Options
) -> tuple[Loader, dict[str, str]]:
    if not options.embedding:
        return loader, origin
    from sdexport.checkpoints.textual_inversion import (
        LEGACY_EOS,
        Embedding,
        add_tokens,
        add_vectors,
        parse_embedding,
    )

    encoders = {part: m for part, m in _empty_modules(folder).items() if part != "unet"}
    widths = {part: module.config.hidden_size for part, module in encoders.items()}
    embeddings = [
        Embedding.open(path, word, widths, allow_pickle=options.allow_pickle)
        for path, word in map(parse_embedding, options.embedding)
    ]
    ids, eos = {}, {}
    for part, module in encoders.items():
        tokenizer = folder / part.replace("text_encoder", "tokenizer")
        ids[part] = add_tokens(tokenizer, embeddings)
        eos[part] = ClipTokenizer.from_folder(tokenizer, error=CheckpointError).eos_id
        size = max(module.config.vocab_size, max(ids[part].values()) + 1)
        config = folder / part / "config.json"
        update_json(config, {"vocab_size": size})
        if module.config.eos_token_id == LEGACY_EOS:
            update_json(config, {"eos_token_id": eos[part]})

    def load(part: str) -> Any:
        module = loader(part)
        if part in encoders:
            add_vectors(part, module, embeddings, ids[part], eos=eos[part])
        return module

    told = {}
    for number, embedding in enumerate(embeddings, 1):
        told[f"embedding.{number}.sha256"] = embedding.file.sha256()
        told[f"embedding.{number}.word"] = embedding.word
    return load, origin | told


def _empty_modules(folder: Path) -> dict[str, Any]:
    """UNet and text encoders as the folder's configurations have them, without weights."""
    index = read_json(folder / "model_index.json")
    return {
        part: empty(str(index[part][1]), read_json(folder / part / "config.json"))
        for part in (*TEXT_ENCODERS, "unet")
        if index.get(part) not in (None, [None, None])
    }


def update_json(path: Path, values: Mapping[str, Any]) -> None:
    """Change some entries of a JSON object on disk, or begin one."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, **values}, indent=2) + "\n", encoding="utf-8")
