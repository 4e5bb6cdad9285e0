"""JSON configurations of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.engines.errors import CheckpointError
from sdexport.engines.files import read_json, write_atomically
from sdexport.engines.guarded_files import JSON_LIMIT


def read_config(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint, of at most `limit` bytes.

    Raises: CheckpointError: the file is missing or damaged.
    """
    try:
        return read_json(path, CheckpointError, limit=limit)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; expected a complete checkpoint in diffusers' layout"
        ) from error


def write_config(path: Path, values: Mapping[str, Any], *, ensure_ascii: bool = True) -> None:
    """Write a JSON object as diffusers does, and create the folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=ensure_ascii) + "\n")


def update_config(path: Path, values: Mapping[str, Any]) -> None:
    """Change or add entries of a JSON object on disk.

    Raises: CheckpointError: the file is missing or damaged.
    """
    write_config(path, {**read_config(path), **values})
