"""The files of weights of a component in a diffusers folder, and the choice between them.

A folder may hold the same weights several times: as .safetensors and .bin, in full precision and as
variants such as fp16, in one file or in shards.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.checkpoints.config_files import read_config
from sdexport.checkpoints.diffusers_layout import TEXT_ENCODERS
from sdexport.checkpoints.weight_file import PICKLE_HINT
from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import one_line
from sdexport.runtime.models.components import SAFETY_CHECKER

logger = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".bin")
_OF_TRANSFORMERS = (*TEXT_ENCODERS, SAFETY_CHECKER.source)
"""Components whose files are named as transformers names them."""
_SHOWN = 5
"""Files that a message lists where no weights are found."""


@dataclass(frozen=True)
class WeightSet:
    """All weights of a component, once.

    variant: such as "fp16"; empty for the plain one.
    path: the file, or the list of its shards.
    """

    variant: str
    suffix: str
    path: Path

    def files(self) -> list[Path]:
        """The files of weights; one, or the shards by name.

        Raises: CheckpointError: the list of shards is damaged.
        """
        if self.path.suffix != ".json":
            return [self.path]
        weight_map = read_config(self.path).get("weight_map", {})
        names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) and name and Path(name).name == name for name in names):
            raise CheckpointError(f"{self.path} is damaged: it names files outside of its folder")
        return sorted(self.path.with_name(str(name)) for name in set(names))


def weight_sets(folder: Path, part: str) -> list[WeightSet]:
    """What the folder of a component holds: safetensors first, whole files before shards.

    Args:
      part: the component, which decides the names of its files.
    """
    sets = []
    for suffix in _SUFFIXES:
        stem = _stem(part, suffix)
        patterns = (
            rf"{stem}(?:\.(\w+))?{re.escape(suffix)}",
            rf"{stem}{re.escape(suffix)}\.index(?:\.(\w+))?\.json",
        )
        for pattern in patterns:
            found = ((re.fullmatch(pattern, path.name), path) for path in sorted(folder.glob("*")))
            sets += [WeightSet(m[1] or "", suffix, p) for m, p in found if m and p.is_file()]
    return sets


def has_weights(folder: Path, part: str, *, allow_pickle: bool = False) -> bool:
    """Whether a checkpoint's folder has weights of a component that may be read."""
    sets = weight_sets(folder / part, part)
    return any(allow_pickle or each.suffix == ".safetensors" for each in sets)


def weight_files(
    folder: Path, part: str, *, variant: str | None = None, allow_pickle: bool = False
) -> list[Path]:
    """The files of a component's weights in a checkpoint's folder; see `files_in`."""
    return files_in(folder / part, part, variant=variant, allow_pickle=allow_pickle)


def every_file(
    folder: Path, parts: Iterable[str], *, variant: str | None = None, allow_pickle: bool = False
) -> dict[str, list[Path]]:
    """The files of weights of every component of a checkpoint; see `files_in`.

    Raises: CheckpointError: see `files_in`; or no component has the chosen variant.
    """
    listed = list(parts)
    names = {each.variant for part in listed for each in weight_sets(folder / part, part)}
    if variant and variant not in names:
        there = ", ".join(sorted(names - {""})) or "none"
        raise CheckpointError(
            f"{folder}: no component has weights of variant {one_line(variant, 40)}; "
            f"variants there: {there}"
        )
    choice: dict[str, Any] = {"variant": variant, "allow_pickle": allow_pickle}
    return {part: weight_files(folder, part, **choice) for part in listed}


def files_in(
    folder: Path, part: str, *, variant: str | None = None, allow_pickle: bool = False
) -> list[Path]:
    """The files of a component's weights, in its own folder.

    The plain weights come before variants, and .safetensors before .bin. A component without the
    chosen variant has its plain weights used, as in diffusers.

    Args:
      variant: such as "fp16"; needed if there are several and no plain weights.
      allow_pickle: read .bin files too.
    Raises: CheckpointError: none, or some are missing, or the choice is left open; the message says
      what is there.
    """
    sets = weight_sets(folder, part)
    readable = [each for each in sets if allow_pickle or each.suffix == ".safetensors"]
    wanted = [variant, ""] if variant else [""]
    chosen = [each for name in wanted for each in readable if each.variant == name]
    if not chosen:
        chosen = _only_variant(folder, part, readable, variant)
    if not chosen:
        raise _none_found(folder, part, sets)
    if variant and chosen[0].variant != variant:
        logger.warning(
            "%s: %s has no variant %s; its plain weights are used", folder.parent, part, variant
        )
    files = chosen[0].files()
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(
            f"{folder.parent}: {part}: missing {', '.join(missing) or 'weights'}; download it again"
        )
    return files


def _only_variant(
    folder: Path, part: str, sets: list[WeightSet], variant: str | None
) -> list[WeightSet]:
    names = sorted({each.variant for each in sets})
    if len(names) > 1 or (names and variant):
        wanted = f"no variant {variant}" if variant else "no plain weights, but several variants"
        raise CheckpointError(
            f"{folder.parent}: {part}: {wanted}; give --variant with one of {', '.join(names)}"
        )
    return sets


def _none_found(folder: Path, part: str, sets: list[WeightSet]) -> CheckpointError:
    expected = f"{_stem(part, _SUFFIXES[0])}{_SUFFIXES[0]}"
    if sets:
        found = sets[0].path.name
        return CheckpointError(
            f"{folder.parent}: {part}: its weights are in {found}: {PICKLE_HINT}"
        )
    names = sorted(p.name for p in folder.glob("*") if p.is_file() and p.name != "config.json")
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    there = f"; it holds {', '.join(names[:_SHOWN])}{more}" if names else ""
    return CheckpointError(f"{folder.parent}: {part}: missing {expected}{there}; download it again")


def _stem(part: str, suffix: str) -> str:
    if part not in _OF_TRANSFORMERS:
        return "diffusion_pytorch_model"
    return "model" if suffix == ".safetensors" else "pytorch_model"
