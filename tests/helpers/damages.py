"""Damages of a package: one layer of one graph is changed, and every hash is made to agree."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from tests.helpers.changed_package import accept_files

KINDS = (
    *("layer zeroed", "layer x 1.03", "layer x 0.97", "channels exchanged", "bias dropped"),
    *("layers swapped", "epsilon x 1000", "weights in 6 bits"),
)
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
_NORMS = ("LayerNormalization", "GroupNormalization")
_WEIGHT_OF = {"Conv": 1, "Gemm": 1, "MatMul": 1}


@dataclass(frozen=True)
class Damage:
    """What is changed where. other: the layer that is swapped with; channels: those exchanged."""

    component: str
    kind: str
    node: str
    other: str = ""
    channels: tuple[int, int] = (0, 1)


class _Weight:
    """The weight of a layer: an array, or int8 values with a scale for each output channel."""

    def __init__(self, tensors: Mapping[str, Any], name: str, scale: str | None, axis: int) -> None:
        self._values, self.axis = tensors[name], axis
        self._scale = None if scale is None else tensors[scale]

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        scale = None if self._scale is None else to_array(self._scale)
        return to_array(self._values), scale

    def write(self, values: np.ndarray, scale: np.ndarray | None) -> None:
        _set(self._values, values)
        if self._scale is not None and scale is not None:
            _set(self._scale, scale)

    def change(self, kind: str, channels: tuple[int, int]) -> None:
        values, scale = self.read()
        single = values.astype(np.float32)
        if kind == "layer zeroed":
            self.write(0 * single, scale)
        elif kind.startswith("layer x"):
            factor = float(kind.rpartition(" ")[2])
            if scale is None:
                self.write(single * np.float32(factor), None)
            else:
                self.write(values, scale * np.float32(factor))
        elif kind == "channels exchanged":
            order = np.arange(values.shape[self.axis])
            order[[*channels]] = order[[*channels][::-1]]
            scales = None if scale is None else np.take(scale, order)
            self.write(np.take(values, order, self.axis), scales)
        else:
            largest = 127.0 if scale is not None else float(np.abs(single).max())
            step = largest / 31
            self.write(np.rint(single / step) * step, scale)


def to_array(tensor: Any) -> np.ndarray:
    return numpy_helper.to_array(tensor)


def _set(tensor: Any, values: np.ndarray) -> None:
    dtype = to_array(tensor).dtype
    if dtype == np.int8:
        values = np.clip(np.rint(values), -127, 127)
    changed = numpy_helper.from_array(values.astype(dtype), tensor.name)
    tensor.CopyFrom(changed)


class Graph:
    """An ONNX model in memory, its layers and normalisations by the name of their node."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.load(path)
        stub = onnx.load(path, load_external_data=False).graph.initializer
        self._external = {t.name: t.external_data for t in stub if t.external_data}
        graph = self.model.graph
        self._tensors = {t.name: t for t in graph.initializer}
        self._nodes = {n.name: n for n in graph.node}
        self._made_by = {o: n for n in graph.node for o in n.output}
        self._uses: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._uses.setdefault(name, []).append(node)

    def nodes(self, kind: str) -> list[str]:
        """The nodes to which a kind of damage applies."""
        if kind.startswith("epsilon"):
            return [n.name for n in self._nodes.values() if n.op_type in _NORMS]
        found = [n for n in self._nodes if self.weight(n) is not None]
        return [n for n in found if self.bias(n)] if kind == "bias dropped" else found

    def node_with(self, weight: str) -> str:
        """The node whose weight has a name, in whatever way it is stored."""
        names = [n for n, node in self._nodes.items() if any(weight in i for i in node.input)]
        layers = [n for n in names if self._nodes[n].op_type in _WEIGHT_OF]
        if not layers:  # int8: the node behind DequantizeLinear
            uses = (use for n in names for o in self._nodes[n].output for use in self._uses[o])
            layers = [use.name for use in uses if use.op_type in _WEIGHT_OF]
        (found,) = layers
        return found

    def shape(self, node: str) -> tuple[int, ...]:
        weight = self.weight(node)
        return () if weight is None else weight.read()[0].shape

    def weight(self, node: str) -> _Weight | None:
        found = self._nodes[node]
        if found.op_type not in _WEIGHT_OF:
            return None
        name, scale = found.input[_WEIGHT_OF[found.op_type]], None
        maker = self._made_by.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            name, scale = maker.input[:2]
        if name not in self._tensors or len(self._tensors[name].dims) < 2:
            return None
        transposed = any(a.name == "transB" and a.i for a in found.attribute)
        last = found.op_type == "MatMul" or (found.op_type == "Gemm" and not transposed)
        return _Weight(self._tensors, name, scale, 1 if last else 0)

    def bias(self, node: str) -> str | None:
        found = self._nodes[node]
        if len(found.input) > 2 and found.input[2] in self._tensors:
            return str(found.input[2])
        for use in self._uses.get(found.output[0], ()) if found.op_type == "MatMul" else ():
            if use.op_type == "Add":
                return next((str(i) for i in use.input if i in self._tensors), None)
        return None

    def apply(self, damage: Damage) -> None:
        """Change the model in memory."""
        if damage.kind.startswith("epsilon"):
            (epsilon,) = [a for a in self._nodes[damage.node].attribute if a.name == "epsilon"]
            epsilon.f *= 1000
            return
        if damage.kind == "bias dropped":
            bias = self._tensors[str(self.bias(damage.node))]
            _set(bias, 0 * to_array(bias))
            return
        weight = self.weight(damage.node)
        assert weight is not None
        if damage.kind == "layers swapped":
            other = self.weight(damage.other)
            assert other is not None
            mine, theirs = weight.read(), other.read()
            weight.write(*theirs)
            other.write(*mine)
        else:
            weight.change(damage.kind, damage.channels)

    def replace_files(self, folder: Path) -> None:
        """Write the graph, and its data file if it has one, in place of those in a folder."""
        model, data = onnx.ModelProto(), bytearray()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self._external:
                entries = {e.key: e.value for e in self._external[tensor.name]}
                data = data or bytearray((self.path.parent / entries["location"]).read_bytes())
                start = int(entries.get("offset", 0))
                data[start : start + len(tensor.raw_data)] = tensor.raw_data
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.extend(self._external[tensor.name])
        files = {self.path.name: model.SerializeToString()}
        if data:
            files[f"{self.path.name}_data"] = bytes(data)
        for name, content in files.items():
            (folder / name).write_bytes(content)


EFFECT = 1e-4
"""Least relative L2 change of an output, in float32 and on inputs that no package records, from
which a change of the weights counts as a damage. Below it, images differ by less than 1 of 255."""


class Effects:
    """How much damages change a component's float32 graph, on inputs that no package records.

    Args:
      package: in float32.
    """

    def __init__(self, package: Path, component: str, seed: int = 7) -> None:
        self.path = package / component / "model.onnx"
        self._feeds = _new_inputs(package, component, np.random.default_rng(seed))
        self._healthy = _run(Graph(self.path).model, self._feeds)

    def of(self, damage: Damage) -> float:
        """The largest relative L2 change of an output; infinity for NaN."""
        damaged = Graph(self.path)
        damaged.apply(damage)
        outputs = zip(self._healthy, _run(damaged.model, self._feeds), strict=True)
        norms = [float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in outputs]
        return max(norms) if np.isfinite(norms).all() else float("inf")


def _run(model: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray] = session.run(None, dict(feeds))
    return found


def _new_inputs(package: Path, component: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs of the kinds and shapes that are recorded, with other values."""
    with np.load(package / "reference" / f"{component}.npz") as data:
        feeds = {k.removeprefix("input."): v for k, v in data.items() if k.startswith("input.")}
    for name, value in feeds.items():
        if name == "input_ids":
            feeds[name] = np.concatenate([value[:, :1], rng.permuted(value[:, 1:], axis=1)], 1)
        elif name == "timestep":
            feeds[name] = np.full_like(value, 301)
        elif value.ndim > 1:
            feeds[name] = rng.permuted(value, axis=-1)
    return feeds


def damaged_copy(package: Path, damage: Damage, folder: Path) -> Path:
    """A copy of a package with one damage, whose manifest agrees with its files."""
    shutil.copytree(package, folder)
    graph = Graph(package / damage.component / "model.onnx")
    graph.apply(damage)
    graph.replace_files(folder / damage.component)
    accept_files(folder)
    return folder


def draw(graph: Graph, component: str, kind: str, rng: np.random.Generator) -> Damage | None:
    """A random damage of a kind; None if no two layers have the same shape."""
    nodes = graph.nodes(kind)
    node = nodes[int(rng.integers(len(nodes)))]
    damage = Damage(component, kind, node)
    if kind == "layers swapped":
        same = [n for n in nodes if n != node and graph.shape(n) == graph.shape(node)]
        if not same:
            return None
        damage = replace(damage, other=same[int(rng.integers(len(same)))])
    elif kind == "channels exchanged":
        weight = graph.weight(node)
        assert weight is not None
        count = graph.shape(node)[weight.axis]
        first, second = rng.choice(count, 2, replace=False)
        damage = replace(damage, channels=(int(first), int(second)))
    return damage
