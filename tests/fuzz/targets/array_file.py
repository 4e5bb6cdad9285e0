"""Arrays in .npz and .npy files, as reference outputs are read: first the one, then the other."""

from __future__ import annotations

import random
from pathlib import Path

from sdexport.engines.array_files import read_array, read_arrays
from sdexport.engines.errors import PackageError
from tests.fuzz import mutators
from tests.fuzz.harness import Target

FILE = "unet.npz"
LIMIT = 2**20


def write(folder: Path, data: bytes) -> None:
    (folder / FILE).write_bytes(data)


def run(folder: Path, data: bytes) -> None:
    read = read_arrays if data.startswith(b"PK") else read_array
    read(folder / FILE, error=PackageError, limit=LIMIT, folder=folder)


def mutate(data: bytes, rng: random.Random) -> bytes:
    return (mutators.zip_file if data.startswith(b"PK") else mutators.npy)(data, rng)


TARGET = Target(
    "array_file",
    run,
    names=(FILE,),
    write=write,
    mutate=mutate,
    errors=(PackageError,),
    longest=16_384,
)
