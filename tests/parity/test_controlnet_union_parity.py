"""Random calls with ControlNet-Unions: the images are those of diffusers' pipelines for them.

A quick test of what the networks add is in tests/runtime/adapters/test_controlnet_unions.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Pipeline, load_pipeline
from tests.helpers.control_unions import UnionCall, UnionPipelines, random_union_call
from tests.tolerances import IMAGE_ABS

ALL = 100
BACKENDS = ("onnxruntime", "openvino")


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture(scope="module")
def pipelines(union_folder: Path) -> UnionPipelines:
    return UnionPipelines(union_folder)


@pytest.fixture(scope="module", params=BACKENDS)
def pipe(request: Any, union_folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(union_folder / "package", request.param) as pipeline:
        yield pipeline


def check(call: UnionCall, pipelines: UnionPipelines, pipe: Pipeline) -> None:
    found = difference(pipelines.expected(call), pipelines.ours(call, pipe))
    assert found <= IMAGE_ABS, f"{found} of 255: {call}"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ALL))
def test_random_call_equals_diffusers(
    number: int, pipelines: UnionPipelines, pipe: Pipeline
) -> None:
    check(random_union_call(number), pipelines, pipe)
