"""Rewritten OpenVINO models compared with the original models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tolerances import WINOGRAD_BF16_REL, WINOGRAD_REL, assert_close

ov = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from sdexport.engines.ov.rewrites.convolutions import rewrite_convolutions  # noqa: E402

RNG = np.random.default_rng(0)
NOTHING = {"halves": 0, "winograd": 0, "splits": 0}


def sizes(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def convolution(
    shape: tuple[int, int, int, int],
    results: int,
    *,
    doubled: Any = None,
    stride: int = 1,
    border: int = 1,
    dilation: int = 1,
    kernel: int = 3,
    element: str = "f32",
    constant: bool = True,
) -> Any:
    """A model of one convolution; `doubled` are the attributes of an Interpolate before it."""
    sample = ops.parameter(shape, getattr(ov.Type, element), name="sample")
    inputs, value = [sample], sample
    if doubled is not None:
        to = doubled.pop("to", (2 * shape[2], 2 * shape[3]))
        value = ops.interpolate(
            sample, sizes(*to), shape_calculation_mode="sizes", axes=sizes(2, 3), **doubled
        )
    weights = random(results, shape[1], kernel, kernel) / np.float32(kernel * shape[1] ** 0.5)
    if constant:
        kernel = ops.constant(weights, dtype=getattr(ov.Type, element))
    else:
        kernel = ops.parameter(weights.shape, name="weights")
        inputs.append(kernel)
    steps, edge, holes = [stride] * 2, [border] * 2, [dilation] * 2
    found = ops.convolution(value, kernel, steps, edge, edge, holes)
    return ov.Model([ops.result(found)], inputs, "model")


def outputs_of(model: Any, sample: np.ndarray) -> list[np.ndarray]:
    process = ov.preprocess.PrePostProcessor(model)
    process.input().tensor().set_element_type(ov.Type.f32)
    for i in range(len(model.outputs)):
        process.output(i).tensor().set_element_type(ov.Type.f32)
    compiled = ov.Core().compile_model(process.build(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({0: sample})
    return [np.array(found[i]) for i in range(len(compiled.outputs))]


def compare(build: Any, expected: dict[str, int], rel: float, **options: bool) -> None:
    """`build` makes the same model each time it is called."""
    global RNG
    sample = None
    results = []
    for rewritten in (False, True):
        RNG = np.random.default_rng(1)
        model = build()
        if rewritten:
            counts = rewrite_convolutions(model, winograd=options.get("winograd", True))
            assert counts == NOTHING | expected
        if sample is None:
            sample = random(*model.inputs[0].shape)
        results.append(outputs_of(model, sample))
    for before, after in zip(*results, strict=True):
        assert_close(after, before, rel=rel)


@pytest.mark.parametrize("element, rel", [("f32", WINOGRAD_REL), ("bf16", WINOGRAD_BF16_REL)])
@pytest.mark.parametrize(
    "shape, results",
    [
        ((1, 256, 24, 24), 240),  # tiles of 4
        ((2, 256, 13, 18), 240),  # that stand over the edge by 3 and 2
        ((2, 256, 15, 17), 256),  # and by 1 and 3
        ((2, 900, 8, 8), 800),  # tiles of 2
        ((3, 1024, 7, 5), 700),
    ],
)
def test_rewrite_uses_winograd_tiles(
    shape: tuple[int, int, int, int], results: int, element: str, rel: float
) -> None:
    compare(lambda: convolution(shape, results, element=element), {"winograd": 1}, rel)


@pytest.mark.parametrize(
    "interpolate",
    [
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"},
    ],
)
@pytest.mark.parametrize("element, rel", [("f32", WINOGRAD_REL), ("bf16", WINOGRAD_BF16_REL)])
def test_rewrite_splits_convolutions_of_upsampled_images(
    interpolate: dict[str, str], element: str, rel: float
) -> None:
    compare(
        lambda: convolution(
            (2, 24, 5, 7), 40, doubled={"mode": "nearest", **interpolate}, element=element
        ),
        {"halves": 1},
        rel,
        winograd=False,
    )


NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
WIDE = (1, 256, 24, 24)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"border": 0},
        {"dilation": 2, "border": 2},
        {"kernel": 1, "border": 0},
        {"kernel": 5, "border": 2},
        {"constant": False},
        {"results": 64},  # too few channels
        {"shape": (1, 256, 12, 12)},  # too few tiles
        {"shape": (1, 16, 5, 7), "doubled": NEAREST | {"to": (10, 13)}},
        {"shape": (1, 16, 5, 7), "doubled": NEAREST | {"to": (15, 21)}},
        {"shape": (1, 16, 5, 7), "doubled": NEAREST | {"nearest_mode": "ceil"}},
        {"shape": (1, 16, 5, 7), "doubled": NEAREST | {"mode": "linear_onnx"}},
    ],
)
def test_rewrite_leaves_other_convolutions(options: dict[str, Any]) -> None:
    model = convolution(**({"shape": WIDE, "results": 256} | options))
    assert rewrite_convolutions(model, winograd=True) == NOTHING


def test_rewrite_without_winograd() -> None:
    assert rewrite_convolutions(convolution(WIDE, 256), winograd=False) == NOTHING


def product(
    transposed: bool,
    parts: tuple[int, ...],
    element: str = "f32",
    more: Any = None,
    branch: Any = None,
) -> Any:
    """A product that is split; `branch` makes a second one of the sample, which is added."""
    kind = getattr(ov.Type, element)
    sample = ops.parameter((2, 5, 12), kind, name="sample")
    size = sum(parts)
    weights = ops.constant(random(*((size, 12) if transposed else (12, size))), dtype=kind)
    total = ops.matmul(sample, weights, False, transposed)
    if branch is not None:
        total = ops.add(total, branch(sample, size, kind))
    total = ops.add(total, ops.constant(random(size), dtype=kind))
    cut = ops.variadic_split(total, ops.constant(np.int64(-1)), sizes(*parts))
    extra = [] if more is None else [ops.result(more(total))]
    return ov.Model([*(ops.result(o) for o in cut.outputs()), *extra], [sample], "model")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("parts", [(8, 8), (3, 9, 4)])
@pytest.mark.parametrize("element, rel", [("f32", WINOGRAD_REL), ("bf16", WINOGRAD_BF16_REL)])
def test_rewrite_splits_weights_instead_of_results(
    transposed: bool, parts: tuple[int, ...], element: str, rel: float
) -> None:
    compare(lambda: product(transposed, parts, element), {"splits": 1}, rel)


def low_rank(sample: Any, size: int, kind: Any, rank: int = 3) -> Any:
    """The branch of a LoRA, with a second factor for each row of the batch."""
    down = ops.constant(random(12, rank), dtype=kind)
    up = ops.constant(random(2, rank, size), dtype=kind)
    return ops.matmul(ops.matmul(sample, down, False, False), up, False, False)


@pytest.mark.parametrize("parts", [(8, 8), (3, 9, 4)])
@pytest.mark.parametrize("element, rel", [("f32", WINOGRAD_REL), ("bf16", WINOGRAD_BF16_REL)])
def test_rewrite_splits_the_factors_of_a_lora_too(
    parts: tuple[int, ...], element: str, rel: float
) -> None:
    compare(lambda: product(True, parts, element, branch=low_rank), {"splits": 1}, rel)


@pytest.mark.parametrize(
    "branch",
    [
        lambda sample, size, kind: ops.constant(random(2, 5, size), dtype=kind),
        lambda sample, size, kind: ops.relu(low_rank(sample, size, kind)),
        lambda sample, size, kind: low_rank(sample, 1, kind),
    ],
)
def test_rewrite_leaves_products_to_which_others_are_added(branch: Any) -> None:
    assert rewrite_convolutions(product(True, (8, 8), branch=branch), winograd=True) == NOTHING


def test_rewrite_leaves_products_with_other_users() -> None:
    assert rewrite_convolutions(product(True, (8, 8), more=ops.relu), winograd=True) == NOTHING


def test_rewrite_leaves_splits_along_other_axes() -> None:
    sample = ops.parameter((2, 4, 12), name="sample")
    total = ops.add(ops.matmul(sample, ops.constant(random(12, 6)), False, False), random(6))
    cut = ops.split(total, ops.constant(np.int64(1)), 2)
    model = ov.Model([ops.result(o) for o in cut.outputs()], [sample], "model")
    assert rewrite_convolutions(model, winograd=True) == NOTHING
