"""The settings in an image: AUTOMATIC1111's text, and our JSON."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path

from PIL import Image

from sdexport.commands.inspect_image import settings_lines
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.images.infotext import label
from sdexport.runtime.images.parameters import Parameters
from sdexport.runtime.images.read_parameters import read_parameters
from sdexport.runtime.images.xmp import packet
from tests.fuzz import mutators
from tests.fuzz.harness import Target


def run(folder: Path, data: bytes) -> None:
    """An input that begins with { is the JSON, another one the text."""
    text = data.decode("utf-8", "replace")
    image = Image.new("RGB", (8, 8))
    if text.startswith("{"):
        image.info["sdexport"] = text
    elif text.startswith("<"):
        image.info["xmp"] = data
    else:
        image.info["parameters"] = text
    parameters = read_parameters(image)
    settings_lines(parameters)
    parameters.to_json()
    str(parameters)
    parameters.pipeline_arguments()


def mutate(data: bytes, rng: random.Random) -> bytes:
    if data.startswith(b"{"):
        return _JSON(data, rng)
    return _TEXT(data, rng)


LABELS = [label(each.name) for each in fields(Parameters)]
_JSON = mutators.json_text([each.name for each in fields(Parameters)])
_TEXT = mutators.text(
    [
        *(f", {name}: " for name in LABELS),
        *("Steps: 20, Sampler: Euler a, Seed: 1", "\nNegative prompt: ", "Size: 64x64", '"', "\\"),
        *(", Version: sdexport 0.1", ", Version: v1.10", "Hires upscale: 2", "Schedule type: Beta"),
        *('{"a": 1}', "1 2 3", "x", "\n", ",", ":", "True", "0123456789"),
        packet(settings="{}").decode(),
    ]
)
TARGET = Target(
    "image_text",
    run,
    names=("image", "settings"),
    mutate=mutate,
    errors=(InvalidArgumentError,),
    longest=4096,
)
