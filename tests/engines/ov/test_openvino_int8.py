"""8-bit OpenVINO models compared with the same models in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tolerances import INT8_COSINE, INT8_RMS

ov = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from sdexport.engines import open_session  # noqa: E402
from sdexport.engines.ov.rewrites.int8 import quantize  # noqa: E402
from tests.helpers.unet_sessions import feeds  # noqa: E402

RNG = np.random.default_rng(0)
CHANNELS, SIDE = 64, 8
NOTHING = {"Convolution": 0, "MatMul": 0}


def weights(*shape: int, scale: float = 1.0, element: str = "f32") -> Any:
    values = RNG.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return ops.constant(values, dtype=getattr(ov.Type, element))


def group_norm(value: Any, element: str, spread: float) -> Any:
    """With channels whose scales are `spread` decades apart."""
    scale = (10 ** RNG.uniform(-spread, 0, CHANNELS)).astype(np.float32)
    shift = RNG.standard_normal(CHANNELS, dtype=np.float32) * scale
    kind = getattr(ov.Type, element)
    affine = ops.constant(scale, dtype=kind), ops.constant(shift, dtype=kind)
    return ov.opset12.group_normalization(value, *affine, 32, 1e-6)


def convolve(value: Any, results: int = CHANNELS, element: str = "f32") -> Any:
    kernel = weights(results, CHANNELS, 3, 3, scale=1 / 24, element=element)
    return ops.convolution(value, kernel, [1, 1], [1, 1], [1, 1], [1, 1])


def image_model(
    activation: str | None = "sigmoid",
    *,
    results: int = CHANNELS,
    element: str = "f32",
    spread: float = 0.0,
    normalised: bool = True,
) -> Any:
    sample = ops.parameter([1, CHANNELS, SIDE, SIDE], getattr(ov.Type, element))
    value = group_norm(sample, element, spread) if normalised else ops.multiply(sample, sample)
    if activation == "sigmoid":
        value = ops.multiply(value, ops.sigmoid(value))
    elif activation == "swish":
        value = ops.swish(value)
    elif activation == "another gate":
        value = ops.multiply(value, ops.sigmoid(sample))
    return ov.Model([convolve(value, results, element)], [sample], "image")


def token_model(*, convolutions: bool = True) -> Any:
    """Two products of one layer normalisation, and one of their sum."""
    tokens = ops.parameter([1, 16, CHANNELS], ov.Type.f32)
    value = ops.mvn(tokens, ops.constant(np.array([2])), True, 1e-5, "inside_sqrt")
    value = ops.add(ops.multiply(value, weights(CHANNELS)), weights(CHANNELS))
    one = ops.matmul(value, weights(CHANNELS, CHANNELS, scale=1 / 8), False, True)
    other = ops.matmul(value, weights(CHANNELS, CHANNELS, scale=1 / 8), False, False)
    found = ops.matmul(ops.add(one, other), weights(CHANNELS, CHANNELS), False, False)
    results = [found, one, other]
    if convolutions:
        square = ops.reshape(found, ops.constant(np.array([1, CHANNELS, 4, 4])), False)
        results.append(convolve(square))
    return ov.Model(results, [tokens], "tokens")


def outputs_of(model: Any, sample: np.ndarray) -> tuple[list[np.ndarray], list[str]]:
    """The results, and the precisions that convolutions and products were computed in."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = sample.astype(compiled.inputs[0].get_element_type().to_dtype())
    found = compiled({0: inputs})
    kinds = [
        str(node.get_rt_info()["runtimePrecision"].astype(str))
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("Convolution", "FullyConnected")
    ]
    return [np.array(found[i], np.float64) for i in range(len(compiled.outputs))], kinds


def compared(build: Any, **options: Any) -> tuple[dict[str, int], list[float], list[str]]:
    """What was quantised, the relative errors of each result, and the precisions."""
    global RNG
    found: list[Any] = []
    for quantised in (False, True):
        RNG = np.random.default_rng(1)
        model = build(**options)
        counts = quantize(model) if quantised else {}
        shape = tuple(model.inputs[0].get_shape())
        sample = 3 * np.random.default_rng(2).standard_normal(shape, dtype=np.float32) + 1
        found.append((counts, *outputs_of(model, sample)))
    errors = [
        float(np.sqrt(((one - other) ** 2).mean() / (one**2).mean()))
        for one, other in zip(found[0][1], found[1][1], strict=True)
    ]
    return found[1][0], errors, found[1][2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "swish"},
        {"activation": None},
        {"spread": 2.0},
        {"activation": None, "spread": 2.0},
        {"element": "f16"},
    ],
)
def test_convolutions_of_normalised_images(options: dict[str, Any]) -> None:
    counts, (error,), kinds = compared(image_model, **options)
    assert counts == NOTHING | {"Convolution": 1}
    assert 0 < error < INT8_RMS
    assert kinds in (["i8"], ["u8"])


@pytest.mark.parametrize("options", [{"normalised": False}, {"results": 4}])
def test_convolutions_that_are_left_alone(options: dict[str, Any]) -> None:
    counts, (error,), kinds = compared(image_model, **options)
    assert counts == NOTHING
    assert error == 0 and kinds == ["f32"]


def test_another_gate_than_silu_has_no_known_range() -> None:
    assert quantize(image_model("another gate")) == NOTHING


def test_channels_that_are_not_those_of_the_normalisation() -> None:
    sample = ops.parameter([1, CHANNELS, SIDE, SIDE], ov.Type.f32)
    shape = ops.constant(np.array([1, CHANNELS // 2, SIDE, 2 * SIDE]))
    value = ops.reshape(group_norm(sample, "f32", 0.0), shape, False)
    kernel = weights(CHANNELS, CHANNELS // 2, 1, 1)
    found = ops.convolution(value, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    assert quantize(ov.Model([found], [sample], "reshaped")) == NOTHING


def test_products_of_one_normalisation_share_its_steps() -> None:
    counts, errors, kinds = compared(token_model)
    assert counts == NOTHING | {"MatMul": 2}
    assert max(errors) < INT8_RMS
    assert sorted(kinds) in (["f32", "f32", "i8", "i8"], ["f32", "f32", "u8", "u8"])
    model = token_model()
    quantize(model)
    names = [node.get_type_name() for node in model.get_ordered_ops()]
    assert names.count("FakeQuantize") == 1


def test_models_without_convolutions_are_left_alone() -> None:
    assert quantize(token_model(convolutions=False)) == NOTHING


def test_channels_that_are_always_zero() -> None:
    model = image_model()
    for node in model.get_ordered_ops():
        if node.get_type_name() == "GroupNormalization":
            for i in (1, 2):
                zero = ops.constant(np.zeros(CHANNELS, np.float32))
                node.input(i).replace_source_output(zero.output(0))
    assert quantize(model) == NOTHING | {"Convolution": 1}
    (found,), _ = outputs_of(model, np.ones((1, CHANNELS, SIDE, SIDE), np.float32))
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
@pytest.mark.parametrize("static", [True, False])
def test_components_stay_near_float32(package: Path, component: str, static: bool) -> None:
    if component == "unet":
        inputs = feeds(batch=2)
    else:
        rng = np.random.default_rng(0)
        inputs = {"latent_sample": rng.standard_normal((1, 4, 16, 16), dtype=np.float32)}
    found = []
    for options in ({}, {"precision": "i8", "static": static}):
        path = package / component / "model.onnx"
        with open_session(path, "openvino", **options) as session:  # type: ignore[arg-type]
            (output,) = session.run(inputs).values()
            found.append(output.ravel().astype(float))
    one, other = found
    assert np.any(one != other)
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) >= INT8_COSINE
