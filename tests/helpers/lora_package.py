"""A small package whose graphs take LoRAs, with the checkpoint that it was exported from."""

from __future__ import annotations

from pathlib import Path

from sdexport.exporter import export
from tests.helpers.families import build

FAMILY = "sd1"


def make(folder: Path, family: str = FAMILY) -> None:
    """Write checkpoint/ and package/ to a folder."""
    folder.mkdir()
    export(build(family, folder / "checkpoint"), folder / "package", lora_inputs=True)
