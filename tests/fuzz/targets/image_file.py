"""Image files: their pixels, and the settings in them.

With fewer pixels than the product allows, so that the limits of time and memory are those of a
small file: an image of the largest size needs more of both, whoever made it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sdexport.commands.inspect_image import settings_lines
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.images import image_limits
from sdexport.runtime.images.loading import load_images
from sdexport.runtime.images.read_parameters import read_parameters
from tests.fuzz import mutators
from tests.fuzz.harness import Target

FILE = "photo.png"
PIXELS = 2**21


def write(folder: Path, data: bytes) -> None:
    (folder / FILE).write_bytes(data)


def run(folder: Path, data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_limits, "MAX_PIXELS", PIXELS)
        _run(folder)


def _run(folder: Path) -> None:
    errors = []
    try:
        for image in load_images(folder / FILE):
            assert image.mode == "RGB"
    except InvalidArgumentError as error:
        errors.append(error)
    settings_lines(read_parameters(folder / FILE))
    if errors:
        raise errors[0]


def mutate(data: bytes, rng: random.Random) -> bytes:
    return mutators.png(data, rng)


TARGET = Target(
    "image_file",
    run,
    names=(FILE,),
    write=write,
    mutate=mutate,
    errors=(InvalidArgumentError,),
    longest=8192,
)
