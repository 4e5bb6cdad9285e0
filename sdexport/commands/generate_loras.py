"""The LoRAs of `sdexport generate`: those of --lora, and those that prompts name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown

_TAG = re.compile(r"<(?:lora|lyco):(?P<name>[^<>:]+)(?::(?P<scale>[^<>]*))?>", re.IGNORECASE)
_MOST_FILES = 100_000
_NAMED = 5
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
    known = _files(folder)
    found = []
    for given in rows:
        named: list[Lora] = []
        row = {**({"prompt": recorded} if _TAG.search(recorded) else {}), **given}
        changed = dict(row)
        for key in ("prompt", "prompt_2"):
            if isinstance(row.get(key), str):
                named += (_lora(match, known, folder) for match in _TAG.finditer(row[key]))
                changed[key] = _TAG.sub("", row[key])
        if named:
            changed["loras"] = [*row.get("loras", loras), *dict.fromkeys(named)]
        found.append(changed)
    return found


def _files(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by the name that a prompt gives them."""
    if not folder.is_dir():
        raise NotADirectoryError(f"--lora-dir: {folder} is no folder")
    found: dict[str, list[Path]] = {}
    for count, path in enumerate(folder.rglob("*.safetensors")):
        if count >= _MOST_FILES:
            raise InvalidArgumentError(f"--lora-dir: {folder} holds more than {_MOST_FILES} files")
        found.setdefault(path.stem, []).append(path)
    return found


def _lora(match: re.Match[str], known: Mapping[str, Sequence[Path]], folder: Path) -> Lora:
    name, scale = match["name"].strip(), (match["scale"] or "1").strip()
    paths = known.get(name, ())
    if not paths:
        listed = ", ".join(shown(each)[1:-1] for each in sorted(known)[:_NAMED])
        more = ", ..." if len(known) > _NAMED else ""
        there = f"it has {listed}{more}" if known else "it has no .safetensors file"
        raise InvalidArgumentError(f"{shown(match[0])}: no such LoRA in {folder}; {there}")
    if len(paths) > 1:
        raise InvalidArgumentError(
            f"{shown(match[0])}: {len(paths)} files in {folder} have that name, such as "
            f"{paths[0]} and {paths[1]}"
        )
    try:
        return paths[0], float(scale)
    except ValueError:
        raise InvalidArgumentError(
            f"{shown(match[0])}: expected a number as its scale, got {shown(scale)}"
        ) from None
