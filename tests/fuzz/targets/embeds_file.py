"""Files of prompt embeddings."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.text.embeds_file import load_embeds
from tests.fuzz import mutators
from tests.fuzz.harness import Target

FILE = "prompt.npz"


def write(folder: Path, data: bytes) -> None:
    (folder / FILE).write_bytes(data)


def run(folder: Path, data: bytes) -> None:
    load_embeds(folder / FILE)


TARGET = Target(
    "embeds_file",
    run,
    names=(FILE,),
    write=write,
    mutate=mutators.zip_file,
    errors=(InvalidArgumentError,),
    longest=8192,
)
