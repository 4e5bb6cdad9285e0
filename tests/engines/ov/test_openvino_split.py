"""Split OpenVINO models compared with the original models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tolerances import SPLIT_REL, assert_close

ov = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from sdexport.engines.ov.rewrites.split import ONCE, split  # noqa: E402

RNG = np.random.default_rng(0)
WHOLE = {"sample": (4, 6, 8), "time": (1,), "text": (4, 5, 8)}
HALF = {"sample": (2, 6, 8), "time": (1,), "text": (2, 5, 8)}


def weights(*shape: int) -> Any:
    return ops.constant(RNG.standard_normal(shape, dtype=np.float32))


def attention() -> Any:
    """(sample + time) W meets text V; with ShapeOf nodes, as in exported graphs."""
    sample = ops.parameter([-1, -1, 8], ov.Type.f32, name="sample")
    time = ops.parameter([1], ov.Type.f32, name="time")
    text = ops.parameter([-1, -1, 8], ov.Type.f32, name="text")
    for node in (sample, time, text):
        node.output(0).set_names({node.get_friendly_name()})
    warm = ops.multiply(time, weights(8))
    queries = ops.matmul(ops.add(sample, warm), weights(8, 8), False, False)
    flat = ops.reshape(queries, ops.constant(np.array([-1, 8])), False)
    queries = ops.reshape(flat, ops.shape_of(sample), False)  # rows of all images, and back
    keys = ops.matmul(text, weights(8, 8), False, True)
    scores = ops.softmax(ops.matmul(queries, keys, False, True), -1)
    found = ops.add(ops.matmul(scores, keys, False, False), ops.add(queries, warm))
    result = ops.result(found)
    result.output(0).set_names({"out"})
    return ov.Model([result], [sample, time, text], "attention")


def inputs_of_both() -> dict[str, np.ndarray]:
    one = RNG.standard_normal(HALF["sample"], dtype=np.float32)
    return {
        "sample": np.concatenate([one, one]),
        "time": np.full(1, 0.5, np.float32),
        "text": RNG.standard_normal(WHOLE["text"], dtype=np.float32),
    }


def run(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(inputs)
    return [np.array(found[i]) for i in range(len(compiled.outputs))]


@pytest.mark.parametrize("shared", [["sample"], []])
@pytest.mark.parametrize("constants", [["text"], ["text", "time"], ["time"], ["sample"]])
def test_split_models_compute_the_same(constants: list[str], shared: list[str]) -> None:
    shared = [name for name in shared if name not in constants]
    model, inputs = attention(), inputs_of_both()
    (expected,) = run(model, inputs)
    first, second = split(model, WHOLE, HALF, constants, shared)
    outputs = run(second, {name: inputs[name] for name in constants})
    computed_once = {ONCE.format(i): output for i, output in enumerate(outputs)}
    rest = {
        n: v[: len(v) // 2] if n in shared else v for n, v in inputs.items() if n not in constants
    }
    names = {parameter.output(0).get_any_name() for parameter in first.get_parameters()}
    assert names == {*rest, *computed_once}
    assert_close(run(first, rest | computed_once)[0], expected, rel=SPLIT_REL)


def products(model: Any) -> list[list[int]]:
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [list(node.get_output_shape(0)) for node in nodes]


def test_each_model_computes_its_part() -> None:
    first, second = split(attention(), WHOLE, HALF, ["text"], ["sample"])
    assert products(second) == [[4, 5, 8]]
    assert products(first) == [[2, 6, 8], [4, 6, 5], [4, 6, 8]]


def test_split_fails_if_the_batch_is_not_first() -> None:
    sample = ops.parameter([-1, 6], ov.Type.f32, name="sample")
    text = ops.parameter([-1, 6], ov.Type.f32, name="text")
    for node in (sample, text):
        node.output(0).set_names({node.get_friendly_name()})
    turned = ops.relu(ops.transpose(sample, ops.constant(np.array([1, 0]))))
    model = ov.Model([ops.matmul(text, turned, False, False)], [sample, text], "turned")
    whole, half = {"sample": (4, 6), "text": (4, 6)}, {"sample": (2, 6), "text": (2, 6)}
    with pytest.raises(ValueError, match=r"\[6, 2\] repeated is not \[6, 4\]"):
        split(model, whole, half, ["text"], ["sample"])
