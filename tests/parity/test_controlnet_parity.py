"""Random calls with ControlNets: the images are those of diffusers' ControlNet pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from sdexport import Pipeline, load_pipeline
from tests.helpers.control_calls import (
    TASKS,
    ControlPipelines,
    extended_call,
    make_folder,
    random_control_call,
)
from tests.helpers.control_nets import control_image
from tests.helpers.shared import made_once
from tests.tolerances import IMAGE_ABS

QUICK, ALL = 8, 120
BACKENDS = ("onnxruntime", "openvino")


def compare(pipelines: ControlPipelines, pipe: Pipeline, number: int, *families: str) -> None:
    call = extended_call(number, families or tuple(TASKS))
    expected, found = pipelines.expected(call), pipelines.ours(call, pipe)
    assert found.shape == expected.shape, call
    difference = np.abs(found.astype(int) - expected.astype(int)).max()
    assert difference <= IMAGE_ABS, f"{difference} of 255: {call}"


@pytest.fixture(scope="module")
def quick(control_folder: Path, lora_folder: Path) -> ControlPipelines:
    return ControlPipelines(control_folder, lora_folder)


@pytest.fixture(scope="module")
def pipe(lora_package: Path) -> Iterator[Pipeline]:
    with load_pipeline(lora_package) as pipeline:
        yield pipeline


@pytest.mark.parametrize("number", range(QUICK))
def test_call_equals_diffusers(number: int, quick: ControlPipelines, pipe: Pipeline) -> None:
    compare(quick, pipe, number, "sd1")


def test_control_images_change_the_image(quick: ControlPipelines, pipe: Pipeline) -> None:
    call = random_control_call(0, ("sd1",))
    call = replace(call, nets=[(1.0, 0.0, 1.0)], images=[[control_image(64, 64)]])
    other = replace(call, images=[[control_image(64, 64, seed=1)]])
    difference = quick.ours(call, pipe).astype(int) - quick.ours(other, pipe)
    assert np.abs(difference).max() > 16 * IMAGE_ABS
    plain = pipe(seed=call.seed, scheduler=call.scheduler, **call.shared).images
    difference = quick.ours(call, pipe).astype(int) - np.stack([np.asarray(i) for i in plain])
    assert np.abs(difference).max() > 16 * IMAGE_ABS


@pytest.fixture(scope="module")
def of_family(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], ControlPipelines]:
    @cache
    def of(family: str) -> ControlPipelines:
        folder = made_once(tmp_path_factory, f"controls-{family}", partial(make_folder, family))
        return ControlPipelines(folder)

    return of


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ALL))
def test_random_call_equals_diffusers(
    number: int, of_family: Callable[[str], ControlPipelines]
) -> None:
    pipelines = of_family(random_control_call(number).family)
    backend = BACKENDS[number // len(TASKS) % 2]
    with load_pipeline(pipelines.folder / "package", backend) as pipe:
        compare(pipelines, pipe, number)
