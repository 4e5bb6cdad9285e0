"""Branches of LoRAs in OpenVINO, rewritten, compared with ONNX Runtime on the same graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.tolerances import LOW_RANK_BF16_REL, LOW_RANK_REL, assert_close

ov = pytest.importorskip("openvino")

from sdexport.engines import open_session  # noqa: E402
from sdexport.engines.ov.openvino_session import OpenVinoSession  # noqa: E402
from sdexport.engines.ov.rewrites import low_rank_products, rewritten_model  # noqa: E402
from sdexport.engines.ov.rewrites.low_rank import branches_of  # noqa: E402
from sdexport.engines.ov.rewrites.rewritten_model import BoundInputs, rewrite_model  # noqa: E402
from sdexport.graphs.lora_branches import add_lora_inputs  # noqa: E402
from sdexport.graphs.lora_layers import LoraLayer  # noqa: E402
from sdexport.runtime.adapters.lora_inputs import is_lora_input  # noqa: E402

RNG = np.random.default_rng(0)
FLOAT = ir.DataType.FLOAT


class Builder:
    """An ONNX graph of layers that take LoRAs; `sample` is its input."""

    def __init__(self, *shape: int | str) -> None:
        self.sample = ir.Value(name="sample", type=ir.TensorType(FLOAT), shape=ir.Shape(shape))
        self.graph = ir.Graph([self.sample], [], nodes=[], name="g", opset_imports={"": 23})
        self.layers: list[LoraLayer] = []

    def weight(self, *shape: int) -> ir.Value:
        name = f"w{len(self.graph.initializers)}"
        values = RNG.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))
        tensor = ir.Tensor(values, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(shape), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def node(self, kind: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> Any:
        name = f"n{len(list(self.graph))}"
        values = [ir.Value(name=f"{name}.{i}") for i in range(outputs)]
        self.graph.append(ir.node(kind, inputs, attributes, outputs=values, name=name))
        return values[0] if outputs == 1 else values

    def linear(self, x: ir.Value, inputs: int, outputs: int, *, rank: int = 3) -> ir.Value:
        product = self.node("MatMul", x, self.weight(inputs, outputs))
        self._layer(product, inputs, outputs, (), rank)
        return self.node("Add", product, self.weight(outputs))

    def convolution(
        self, x: ir.Value, inputs: int, outputs: int, kernel: int = 3, stride: int = 1
    ) -> ir.Value:
        weights = self.weight(outputs, inputs, kernel, kernel), self.weight(outputs)
        pads = [kernel // 2] * 4
        value = self.node("Conv", x, *weights, pads=pads, strides=[stride] * 2)
        self._layer(value, inputs, outputs, (kernel, kernel), 4)
        return value

    def _layer(
        self, value: ir.Value, inputs: int, outputs: int, kernel: tuple[int, ...], rank: int
    ) -> None:
        node = value.producer()
        assert node is not None
        name = f"layer{len(self.layers)}"
        self.layers.append(LoraLayer(name, str(node.name), inputs, outputs, kernel, rank))

    def save(self, path: Path, *outputs: ir.Value) -> Path:
        for i, value in enumerate(outputs):
            last = self.node("Identity", value)
            last.name, last.type = f"out{i}", ir.TensorType(FLOAT)
            last.shape = ir.Shape(["batch", *("abc"[: len(self.sample.shape or ()) - 1])])
            self.graph.outputs.append(last)
        add_lora_inputs(self.graph, self.layers)
        path.parent.mkdir()
        ir.save(ir.Model(self.graph, ir_version=10), path)
        return path


def attention(path: Path) -> Path:
    """Three layers with one input, then one of another width."""
    b = Builder("batch", "tokens", 32)
    x = b.node("Sigmoid", b.sample)
    q, k, v = (b.linear(x, 32, 32) for _ in range(3))
    total = b.node("Add", b.node("Mul", q, k), v)
    return b.save(path, b.linear(total, 32, 24), q)


def gated(path: Path) -> Path:
    """The feed-forward layers of a transformer block."""
    b = Builder("batch", "tokens", 16)
    wide = b.linear(b.sample, 16, 96)
    value, gate = b.node("Split", wide, outputs=2, axis=-1, num_outputs=2)
    return b.save(path, b.linear(b.node("Mul", value, b.node("Sigmoid", gate)), 48, 16))


def embedding(path: Path) -> Path:
    """Layers of a vector for each image, as those of a UNet's time embedding."""
    b = Builder("batch", 24)
    x = b.node("Sigmoid", b.sample)
    return b.save(path, b.linear(x, 24, 40, rank=2), b.linear(x, 24, 8, rank=2))


def kernels(path: Path, *, channels: int = 8, results: int = 12) -> Path:
    b = Builder("batch", channels, "height", "width")
    one = b.convolution(b.node("Sigmoid", b.sample), channels, results)
    two = b.convolution(b.node("Sigmoid", one), results, channels)
    down = b.convolution(two, channels, results, stride=2)
    return b.save(path, b.convolution(two, channels, results, 1), down)


GRAPHS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "attention": (attention, (2, 20, 32)),
    "attention of many rows": (attention, (2, 150, 32)),
    "gated": (gated, (2, 10, 16)),
    "gated of many rows": (gated, (2, 150, 16)),
    "embedding": (embedding, (2, 24)),
    "kernels": (kernels, (2, 8, 9, 7)),
    "kernels of many pixels": (kernels, (2, 8, 12, 12)),
    "winograd, tiles of 4": (
        lambda path: kernels(path, channels=224, results=240),
        (2, 224, 18, 21),
    ),
}


def factors(session: Any, rank: int, rows: int = 1) -> dict[str, np.ndarray]:
    found = {}
    for spec in session.inputs:
        if is_lora_input(spec.name):
            taps = 9 if "3x3" in str(spec.shape) else 1
            shape = [
                s if isinstance(s, int) else rows if s == "lora_rows" else taps * rank
                for s in spec.shape
            ]
            found[spec.name] = RNG.standard_normal(shape, np.float32) * np.float32(0.2)
    return found


TOLERANCES = {"f32": LOW_RANK_REL, "bf16": LOW_RANK_BF16_REL}
MERGED = {
    "attention of many rows": 4,
    "gated of many rows": 2,
    "kernels": 1,
    "kernels of many pixels": 1,
    "winograd, tiles of 4": 1,
}
"""How many layers have factors that are added to their weights, in float32."""


@pytest.mark.parametrize("how", ["bound", "shared", "as inputs", "by row"])
@pytest.mark.parametrize("name", GRAPHS)
def test_branches_equal_onnxruntime(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: list[int] = []

    def merge(branches: Any, **options: bool) -> Any:
        rest = low_rank_products.merge_branches(branches, **options)
        merged.append(len(branches) - len(rest))
        return rest

    monkeypatch.setattr(rewritten_model, "merge_branches", merge)
    compare(*GRAPHS[name], how, "f32", tmp_path)
    assert merged == ([MERGED.get(name, 0)] if how in ("bound", "shared") else [])


@pytest.mark.parametrize("name", GRAPHS)
def test_branches_in_bfloat16(name: str, tmp_path: Path) -> None:
    compare(*GRAPHS[name], "shared", "bf16", tmp_path)


def compare(make: Any, shape: tuple[int, ...], how: str, precision: str, folder: Path) -> None:
    path = make(folder / "unet" / "lora.onnx")
    with open_session(path) as reference, OpenVinoSession(path, precision=precision) as session:
        sample = RNG.standard_normal(shape, np.float32)
        given = factors(reference, 3, rows=shape[0] if how == "by row" else 1)
        if how == "shared":
            sample = np.concatenate([sample[:1], sample[:1]])
        expected = reference.run({"sample": sample, **given})
        if how in ("bound", "shared"):
            shared = ("sample",) if how == "shared" else ()
            with session.bind(shared=shared, **given) as bound:
                for _ in range(2):
                    found = bound.run({"sample": sample[:1] if shared else sample})
        else:
            found = session.run({"sample": sample, **given})
    for key, value in expected.items():
        assert_close(found[key], value, rel=TOLERANCES[precision])


def test_rewrites_find_every_branch(tmp_path: Path) -> None:
    path = kernels(tmp_path / "unet" / "lora.onnx")
    model = ov.Core().read_model(path)
    shapes = {"sample": [2, 8, 9, 7]}
    with open_session(path) as session:
        shapes |= {name: list(value.shape) for name, value in factors(session, 3).items()}
    model.reshape(shapes)
    found = branches_of(model)
    assert sorted(branch.kernel for branch in found) == [(1, 1), (3, 3), (3, 3), (3, 3)]
    assert all(branch.rank == 3 and branch.is_for_all_rows for branch in found)


def test_products_with_merged_weights_are_split(tmp_path: Path) -> None:
    """The gated half of feed-forward layers, as without a LoRA."""
    path = gated(tmp_path / "unet" / "lora.onnx")
    with open_session(path) as session:
        given = {name: value.shape for name, value in factors(session, 3).items()}
        specs = session.inputs
    rewritten = rewrite_model(
        lambda: ov.Core().read_model(path),
        specs,
        {"sample": (2, 150, 16), **given},
        precision="f32",
        bound=BoundInputs(frozenset(given), frozenset({"sample"})),
    )
    kinds = [node.get_type_name() for node in rewritten.model.get_ordered_ops()]
    assert kinds.count("MatMul") == 3 and not {"Split", "VariadicSplit"}.intersection(kinds)
    taken = [name for each in rewritten.once.inputs for name in each.get_names()]
    assert sorted(taken) == sorted(given)
