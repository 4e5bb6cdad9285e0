"""Components of a checkpoint in PyTorch, and the comparison of a session with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.graphs.wrappers import Part, parts
from tests.tolerances import COMPONENT_REL, assert_close

SIZES = [
    {"batch": 1, "sequence": 77, "height": 16, "width": 16},
    {"batch": 3, "sequence": 20, "height": 24, "width": 8},
    {"batch": 2, "sequence": 1, "height": 5, "width": 31},
    {"batch": 8, "sequence": 77, "height": 9, "width": 10},
]


def part_named(name: str, checkpoint: Path) -> Part:
    configs = Checkpoint.open(checkpoint).configs
    every = parts(configs)
    return next(part for part in every if part.name == name)


def assert_equal_to_torch(part: Part, session: Any, torch_session: Any) -> None:
    for number, size in enumerate(SIZES):
        size = size | {"image_height": size["height"] * 8, "image_width": size["width"] * 8}
        feeds = {k: v.numpy() for k, v in part.example(size, seed=number).items()}
        expected, actual = torch_session.run(feeds), session.run(feeds)
        assert actual.keys() == expected.keys()
        for output, value in expected.items():
            assert_close(actual[output], value, rel=COMPONENT_REL)
