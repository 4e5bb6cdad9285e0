"""The layers of a built engine, in a file next to its plan: types, fusions, precisions.

The builder lists the layers in its log. They are written down while it builds, because a plan can
be read only on a GPU that it is for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from sdexport.engines.cache.sidecar import Sidecar, sidecar_path
from sdexport.engines.errors import EngineError
from sdexport.engines.guarded_files import MIB, parsing, read_guarded
from sdexport.engines.json_text import parse_json

FORMAT_VERSION = 1
LAYERS_LIMIT = 64 * MIB
"""Bytes of such a file: SDXL's UNet with two profiles has less than 2 MB."""
HEADER = "Layers:"
"""What the builder's message with the layers begins with."""
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: .*?, )?Outputs: (?P<outputs>.*?), TacticName: .*?"
    r"(?:, Metadata: (?P<nodes>.*))?"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[^]]*)\].*?Datatype: (?P<dtype>\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?:\x1f|$)")
_GROUP = re.compile(r"_myl(\d+)_\d+$")
_PROFILE = re.compile(r"\[profile (\d{1,3})\]")
_FUSED = "mha"
"""In the name of a kernel that computes attention as a whole."""
_OPERATION = re.compile("[A-Z][a-z]*")
_REFORMATTING = {"Cast", "Move", "Resh", "Tran"}
"""Operations that change the layout or the type of a tensor, and compute nothing."""
_SIZES = ("shape_call", "signal", "wait", "reshape")
_KINDS = (
    ("convolution", re.compile(r"correlation|conv", re.IGNORECASE)),
    ("matrix product", re.compile(r"gemm|Fc|MatMul|MatrixMultiply")),
    ("softmax", re.compile(r"Maxr.*Exp|Softmax", re.IGNORECASE)),
    ("normalisation", re.compile(r"Mean|Gnor|Inor|Lnor|Normalization")),
    ("reformatting", re.compile(r"Reformat|NoOp")),
)
"""The first one that matches the name or the type of a layer; the rest is "other"."""


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    type: as the library names it. nodes: of the ONNX file that it computes, or a part of them.
    inputs, outputs: such as "Half[2,64,16,16]"; -1 is a dynamic size. profile: index.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    profile: int

    @property
    def kind(self) -> str:
        """What it does: attention, convolution, matrix product, softmax and so on."""
        if _FUSED in self.name:
            return "attention"
        if self.type in _SIZES or self.name.startswith("cast_hvar"):
            return "sizes"
        operations = _operations(self.name)
        if operations and _REFORMATTING.issuperset(operations):
            return "reformatting"
        label = f"{self.type} {self.name if operations else ''}"
        return next((kind for kind, pattern in _KINDS if pattern.search(label)), "other")

    @property
    def dtype(self) -> str:
        """The type of its first output, such as "Half"; "" if it has none."""
        return self.outputs[0].partition("[")[0] if self.outputs else ""


@dataclass(frozen=True)
class Attention:
    """One attention of the ONNX file; see network_attention.find_attention."""

    node: str
    single: bool
    dtype: str
    head_size: int


@dataclass(frozen=True)
class EngineLayers:
    """The layers of an engine, and the attention of the graph that it was built from."""

    layers: tuple[Layer, ...]
    attention: tuple[Attention, ...]

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=0) + "\n"

    @classmethod
    def from_json(cls, content: bytes, path: Path) -> Self:
        """What `to_json` wrote.

        Raises: EngineError: it is damaged; the message names `path`.
        """
        with parsing(EngineError, path):
            data = parse_json(content.decode(), strict=True)
            if data["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version is not {FORMAT_VERSION}")
            return cls(
                tuple(_checked_layer(entry) for entry in data["layers"]),
                tuple(_checked_attention(entry) for entry in data["attention"]),
            )


def layers_path(plan: Path) -> Path:
    """The file of the layers of a plan."""
    return plan.with_suffix(".layers.json")


def parse_layers(messages: Iterable[str]) -> tuple[Layer, ...]:
    """The layers that a builder listed, one in a line; lines of another form are left out."""
    found: list[tuple[Layer, str]] = []
    for message in messages:
        for line in message.splitlines():
            match = _LINE.fullmatch(line)
            if match:
                found.append((_layer(match), line))
    profiles: dict[str, int] = {}
    for layer, line in found:
        tagged = _PROFILE.search(line)
        if tagged:
            profiles[_group(layer)] = int(tagged[1])
    return tuple(
        Layer(**{**vars(layer), "profile": profiles.get(_group(layer), 0)}) for layer, _ in found
    )


def _layer(match: re.Match[str]) -> Layer:
    nodes = (re.sub(_PROFILE, "", name).strip() for name in _NODE.findall(match["nodes"] or ""))
    inputs, outputs = tuple(_tensors(match["inputs"])), tuple(_tensors(match["outputs"]))
    return Layer(match["name"], match["type"], tuple(nodes), inputs, outputs, 0)


def _tensors(text: str) -> Iterator[str]:
    for tensor in _TENSOR.finditer(text):
        yield f"{tensor['dtype']}[{tensor['shape']}]"


def _group(layer: Layer) -> str:
    """The number of the part of the engine that a layer belongs to; each is of one profile."""
    match = _GROUP.search(layer.name)
    return match[1] if match else ""


def _operations(name: str) -> list[str]:
    """The operations in the name of a generated kernel, such as ["Mul", "Add", "Silu"]."""
    return _OPERATION.findall(name.split("_")[3]) if name.startswith("__myl_") else []


def read_layers(plan: Path, sidecar: Sidecar) -> EngineLayers | None:
    """The layers of a plan; None if it has no such file.

    Raises: EngineError: the file was altered, or is damaged.
    """
    path = layers_path(plan)
    stored = sidecar.files.get(path.name)
    if stored is None:
        return None
    content = read_guarded(path, error=EngineError, folder=path.parent, limit=LAYERS_LIMIT)
    if hashlib.sha256(content).hexdigest() != stored.sha256:
        recorded = sidecar_path(plan).name
        raise EngineError(f"{path} was damaged or altered: its SHA-256 is not that in {recorded}")
    return EngineLayers.from_json(content, path)


def _checked_layer(entry: Mapping[str, Any]) -> Layer:
    nodes, inputs, outputs = (
        tuple(map(_text, entry[name])) for name in ("nodes", "inputs", "outputs")
    )
    name, kind = _text(entry["name"]), _text(entry["type"])
    return Layer(name, kind, nodes, inputs, outputs, _whole(entry["profile"]))


def _checked_attention(entry: Mapping[str, Any]) -> Attention:
    if not isinstance(entry["single"], bool):
        raise TypeError("single is not true or false")
    texts = {name: _text(entry[name]) for name in ("node", "dtype")}
    return Attention(**texts, single=entry["single"], head_size=_whole(entry["head_size"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is not a string")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError("a number is not a whole number of 0 or more")
    return value


def in_profiles(layers: Sequence[Layer]) -> dict[int, list[Layer]]:
    """The layers by the index of their profile."""
    found: dict[int, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.profile, []).append(layer)
    return dict(sorted(found.items()))
