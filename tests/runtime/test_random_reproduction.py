"""N4. Images of random settings are generated again from their files: the same bytes."""

from __future__ import annotations

import random
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sdexport import InvalidArgumentError, Parameters, Pipeline, load_pipeline, save_image
from sdexport.cli import main
from sdexport.exporter import export
from sdexport.runtime.images.parameters import OF_BATCH, OF_FILES, OF_PIPELINE
from sdexport.runtime.images.read_parameters import read_parameters
from sdexport.runtime.result import Result
from tests.helpers.families import FAMILIES, build
from tests.helpers.random_settings import (
    CHOICES,
    ELSEWHERE,
    FILES,
    PIPELINES,
    random_call,
    write_inputs,
)
from tests.helpers.shared import made_once

PER_FAMILY = 20
MOST_REJECTED = 300
"""Random calls in a row: many contradict themselves."""


def test_every_setting_is_among_the_random_ones() -> None:
    """A new setting gets its values in tests/helpers/random_settings.py."""
    settings = {each.name for each in fields(Parameters)}
    settings -= {*OF_BATCH, *OF_FILES, *OF_PIPELINE}
    assert settings == {*CHOICES, *ELSEWHERE} - {"num_images_per_prompt"}


def _exported(family: str, folder: Path) -> None:
    export(build(family, folder.with_name(f"{folder.name}-checkpoint")), folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def accepted(rng: random.Random, pipe: Pipeline, inputs: Path) -> Result:
    """The result of a random call that is not rejected."""
    family = pipe._family
    needed = {"image": family.refines or family.masked_input, "mask": family.masked_input}
    for _ in range(MOST_REJECTED):
        arguments = random_call(rng, inputs, **needed)
        try:
            return pipe(**arguments)
        except InvalidArgumentError:
            continue
    raise AssertionError("too many random calls are rejected")


def assert_reproduced(
    rng: random.Random, pipe: Pipeline, inputs: Path, *, package: Path | None = None
) -> None:
    """Generate an image and write it, then both again from the file.

    Args:
      package: run the command with it; by default the pipeline is called.
    """
    result = accepted(rng, pipe, inputs)
    suffix, options = rng.choice(FILES)
    index = rng.randrange(len(result.images))
    first, second = inputs / f"first.{suffix}", inputs / f"second.{suffix}"
    save_image(result.images[index], first, **options)
    what = read_parameters(first)
    if package is None:
        recorded: dict[str, Any] = dict(what.file or {})
        save_image(pipe.like(first).images[0], second, **recorded)
    else:
        command = ["generate", str(package), "--like", str(first), "-o", str(second), "--force"]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, f"{done.output}\n{what}"
        assert "may differ" not in done.stderr, f"{done.output}\n{what}"
    assert read_parameters(second) == what
    assert first.read_bytes() == second.read_bytes(), f"other pixels: {what.to_json()}"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_settings_of_the_demo_model(pipe: Pipeline, package: Path, inputs: Path) -> None:
    rng = random.Random(11)
    for number in range(12):
        assert_reproduced(rng, pipe, inputs, package=None if number % 4 else package)


@pytest.fixture(scope="module", params=FAMILIES)
def family_package(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    make = partial(_exported, request.param)
    return made_once(tmp_path_factory, f"reproduced-{request.param}", make)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(PER_FAMILY))
def test_random_settings_of_every_family(family_package: Path, inputs: Path, number: int) -> None:
    """Every pipeline is fresh: OpenVINO's last bits depend on the shapes that it ran before."""
    rng = random.Random(f"{family_package.name} {number}")
    options = PIPELINES[number % len(PIPELINES)]
    by_command = "backend" in options or not number % 4
    with load_pipeline(family_package, **options) as pipe:
        assert_reproduced(rng, pipe, inputs, package=family_package if by_command else None)
