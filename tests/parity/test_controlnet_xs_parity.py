"""Random calls with ControlNet-XS: the images are those of diffusers' pipelines for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from sdexport import Pipeline, load_pipeline
from tests.helpers.control_xs import SETTINGS, XsPipelines, make_xs_folder, random_xs_call
from tests.helpers.shared import made_once
from tests.tolerances import IMAGE_ABS

QUICK, ALL = 4, 90
BACKENDS = ("onnxruntime", "openvino")


def compare(pipelines: XsPipelines, pipe: Pipeline, number: int) -> None:
    call = random_xs_call(number, pipelines.family)
    expected, found = pipelines.expected(call), pipelines.ours(call, pipe)
    assert found.shape == expected.shape, call
    difference = np.abs(found.astype(int) - expected.astype(int)).max()
    assert difference <= IMAGE_ABS, f"{difference} of 255: {call}"


@pytest.fixture(scope="module")
def quick(xs_folder: Path) -> XsPipelines:
    return XsPipelines(xs_folder, "small")


@pytest.fixture(scope="module")
def pipe(xs_folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(xs_folder / "package") as pipeline:
        yield pipeline


@pytest.mark.parametrize("number", range(QUICK))
def test_call_equals_diffusers(number: int, quick: XsPipelines, pipe: Pipeline) -> None:
    compare(quick, pipe, number)


@pytest.fixture(scope="module")
def of_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], XsPipelines]:
    @cache
    def of(family: str) -> XsPipelines:
        make = partial(make_xs_folder, family)
        return XsPipelines(made_once(tmp_path_factory, f"xs-{family}", make), family)

    return of


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ALL))
def test_random_call_equals_diffusers(number: int, of_family: Callable[[str], XsPipelines]) -> None:
    pipelines = of_family(list(SETTINGS)[number % len(SETTINGS)])
    backend = BACKENDS[number // len(SETTINGS) % 2]
    max_batch = 1 if number % 5 == 0 else None
    folder = pipelines.folder / "package"
    with load_pipeline(folder, backend, max_batch=max_batch) as pipe:
        compare(pipelines, pipe, number)
