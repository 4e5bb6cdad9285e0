"""The folder of an adapter that diffusers wrote: its configuration, and its files of weights."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sdexport.checkpoints.source_index import warn_of_unknown_keys
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.checkpoints.weight_sets import files_in
from sdexport.engines.files import sha256_of


@dataclass(frozen=True)
class AdapterFolder:
    """config: with the defaults of the class filled in. source: see AdapterCheckpoint."""

    config: Mapping[str, Any]
    files: list[WeightFile]
    source: Mapping[str, str]

    @classmethod
    def open(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        model: type,
        part: str,
        *,
        variant: str | None,
        allow_pickle: bool,
    ) -> Self:
        """Open a folder, without reading its weights.

        Args:
          config: as it was written. model: diffusers' class of the adapter. part: see files_in.
        Raises: CheckpointError: see `open_adapter`.
        """
        arguments = inspect.signature(model.__init__).parameters.values()  # type: ignore[misc]
        defaults = {a.name: a.default for a in arguments if a.default is not a.empty}
        warn_of_unknown_keys(folder.parent, folder.name, config, defaults)
        files = files_in(folder, part, variant=variant, allow_pickle=allow_pickle)
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.name} {sha256_of(file)}\n".encode())
        opened = [WeightFile.open(file, allow_pickle=allow_pickle) for file in files]
        source = {"type": "folder", "sha256": digest.hexdigest()}
        return cls({**defaults, **config}, opened, source)
