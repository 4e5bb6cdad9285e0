"""LoRA and textual inversion, merged into a checkpoint before the export."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import read_config, update_config
from sdexport.checkpoints.diffusers_layout import (
    TEXT_ENCODERS,
    present_components,
    tokenizer_folder,
)
from sdexport.checkpoints.embedding_file import bundled_word
from sdexport.checkpoints.lora import Lora
from sdexport.checkpoints.modules import empty
from sdexport.checkpoints.textual_inversion import (
    LEGACY_EOS,
    Embedding,
    add_vectors,
    embedding_sources,
    join_words,
    read_words,
    tokens_of,
)
from sdexport.checkpoints.tokenizer_edits import add_tokens, known_tokens
from sdexport.engines.errors import CheckpointError
from sdexport.engines.files import sha256_of
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.adapters.lora_folder import lora_sources
from sdexport.runtime.adapters.lora_report import warn_about_prediction
from sdexport.runtime.models.components import UNET
from sdexport.runtime.text.tokenizer import ClipTokenizer

logger = logging.getLogger(__name__)

Loader = Callable[[str], Any]
Merged = tuple[Loader, dict[str, str]]
"""How to load a component of the changed checkpoint, and what was merged into it."""


def merge_adapters(
    folder: Path,
    load: Loader,
    *,
    loras: Sequence[str],
    embeddings: Sequence[str],
    allow_pickle: bool,
) -> Merged:
    """Merge LoRA files into a checkpoint, and add words to its tokenizers and text encoders.

    Args:
      folder: the checkpoint's configurations and tokenizers, which are changed.
      load: a component of the checkpoint.
      loras: each PATH or PATH:SCALE, merged one after another.
      embeddings: each PATH or PATH:WORD.
    Raises: FileNotFoundError, CheckpointError, InvalidArgumentError: see Lora.open, read_words.
    """
    modules = _empty_modules(folder)
    opened = [
        Lora.open(
            source.path,
            source.scale,
            modules,
            component=source.component,
            allow_pickle=allow_pickle,
        )
        for text in loras
        for source in lora_sources(text)
    ]
    _check_predictions(folder, opened)
    encoders = {part: module for part, module in modules.items() if part in TEXT_ENCODERS}
    widths = {part: module.config.hidden_size for part, module in encoders.items()}
    words = [
        word
        for text in embeddings
        for path, name in embedding_sources(text)
        for word in read_words(path, name, widths, allow_pickle=allow_pickle)
    ]
    added = join_words(words, list(encoders))
    added += _bundled(opened, folder, widths, {token for e in added for token in e.tokens})
    ids, eos = {}, {}
    for part, module in encoders.items() if added else ():
        ids[part], eos[part] = _add_tokens(folder, part, module.config, added)

    def load_merged(part: str) -> Any:
        module = load(part)
        for lora in opened:
            lora.merge_into(part, module)
        if part in ids:
            add_vectors(part, module, added, ids[part], eos=eos[part])
        return module

    return load_merged, _origin(opened, added)


def _origin(loras: Sequence[Lora], embeddings: Sequence[Embedding]) -> dict[str, str]:
    """What was merged, for the manifest, without paths."""
    origin = {}
    for number, lora in enumerate(loras, 1):
        origin[f"lora.{number}.sha256"] = lora.file.sha256()
        origin[f"lora.{number}.scale"] = f"{lora.scale:g}"
    for number, embedding in enumerate(embeddings, 1):
        hashes = [sha256_of(path) for path in embedding.paths]
        origin[f"embedding.{number}.sha256"] = hashes[0]
        for place, digest in enumerate(hashes[1:], 2):
            origin[f"embedding.{number}.{place}.sha256"] = digest
        origin[f"embedding.{number}.word"] = embedding.word
    return origin


def _check_predictions(folder: Path, loras: Sequence[Lora]) -> None:
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    for lora in loras:
        warn_about_prediction(lora.file, str(scheduler.get("prediction_type", "epsilon")))


def _bundled(
    loras: Sequence[Lora], folder: Path, widths: Mapping[str, int], taken: set[str]
) -> list[Embedding]:
    """The embeddings that LoRA files bring along, without words that exist already."""
    known = set().union(*(known_tokens(folder / tokenizer_folder(part)) for part in widths))
    found = []
    for lora in loras:
        for name, tensors in lora.embeddings.items():
            word = bundled_word(lora.file.path, name, tensors, widths)
            (embedding,) = join_words([word], list(widths))
            if exists := [token for token in embedding.tokens if token in known | taken]:
                logger.warning(
                    "%s: its bundled embedding of %r is not used: there is a token %r already",
                    *(lora.file.path, name, exists[0]),
                )
                continue
            taken |= set(embedding.tokens)
            found.append(embedding)
    return found


def _add_tokens(
    folder: Path, part: str, config: Any, embeddings: Sequence[Embedding]
) -> tuple[dict[str, int], int]:
    """Add the tokens to a text encoder's tokenizer and its size to the configuration.

    Returns: the id of each token, and of the end token.
    """
    tokenizer = folder / tokenizer_folder(part)
    ids = add_tokens(tokenizer, tokens_of(embeddings))
    eos = ClipTokenizer.from_folder(tokenizer, error=CheckpointError).eos_id
    changes = {"vocab_size": max(config.vocab_size, max(ids.values()) + 1)}
    if config.eos_token_id == LEGACY_EOS:
        changes["eos_token_id"] = eos
    update_config(folder / part / "config.json", changes)
    return ids, eos


def _empty_modules(folder: Path) -> dict[str, Any]:
    """UNet and text encoders with the folder's configurations, without weights."""
    index = read_config(folder / "model_index.json")
    present = present_components(index)
    with parsing(folder):
        return {
            part: empty(str(index[part][1]), read_config(folder / part / "config.json"))
            for part in (*TEXT_ENCODERS, UNET.source)
            if part in present
        }
