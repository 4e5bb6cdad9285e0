"""The LoRAs of `sdexport generate`: those of --lora, and those that prompts name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Lora = tuple[Path, float]


def loras_of(texts: Sequence[str]) -> list[Lora]:
    """File and scale of each value of --lora.

    Raises: FileNotFoundError: no such file or folder. InvalidArgumentError: a scale out of range.
    """
    from sdexport.runtime.adapters.lora_folder import parse_lora

    return [parse_lora(text) for text in texts]


def with_tags(
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    loras: Sequence[Lora],
    recorded: str = "",
) -> list[dict[str, Any]]:
    """The rows with the LoRAs that their prompts name, and without these names in the prompts.

    Args:
      rows: settings of each prompt.
      folder: with the LoRAs, in it or in its subfolders.
      loras: for every row that has none of its own.
      recorded: the prompt of rows that have none.
    Raises: NotADirectoryError: no such folder. InvalidArgumentError: a LoRA that is not in it, or a
      scale that is no number.
    """
    from sdexport.runtime.adapters.lora_tags import TAG, LoraFolder

    known = LoraFolder(folder, "--lora-dir")
    found = []
    for given in rows:
        row = {**({"prompt": recorded} if TAG.search(recorded) else {}), **given}
        texts = {key: row[key] for key in ("prompt", "prompt_2") if isinstance(row.get(key), str)}
        changed = {**row, **{key: TAG.sub("", text) for key, text in texts.items()}}
        if named := known.named_in_all(texts.values()):
            changed["loras"] = [*row.get("loras", loras), *named]
        found.append(changed)
    return found
