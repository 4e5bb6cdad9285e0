"""The walk over an ONNX file: its graphs, functions, operators, tensors and notes.

Only what describes the graph is read; the data of weights is skipped.

Source: onnx.proto for the messages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sdexport.engines.onnx_file.declared_values import DeclaredValue
from sdexport.engines.onnx_file.message_fields import (
    Bytes,
    fields,
    packed_integers,
    signed,
    text,
)
from sdexport.engines.onnx_file.tensor_checks import LARGEST_CONSTANT, TensorChecks
from sdexport.engines.onnx_file.tensor_sizes import SIZED, growth
from sdexport.engines.onnx_file.wire_format import (
    Attribute,
    Entry,
    Function,
    Graph,
    Model,
    Node,
    Opset,
)

MAX_DEPTH = 100
"""Of nested messages, as protocol buffers limit it."""
_PRODUCTS = (("", "MatMul"), ("", "Gemm"))
_SMALL = 2**16
"""Bytes of a node that is copied."""
_MAX_ENTRY, _MAX_ENTRIES = 4096, 256
"""Bytes of one metadata entry, and how many there may be; sdexport writes 8 short ones."""


@dataclass
class _NodeToCheck:
    """An operator whose output is as large as one of its inputs says."""

    operator: str
    inputs: list[str]


@dataclass
class GraphWalk:
    """One pass over a file; Python reads a graph of a thousand nodes so in about 20 ms.

    Attributes: see GraphSurvey.
      initializers: names of the tensors that the graph itself holds.
    """

    tensors: TensorChecks
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    functions: int = 0
    depth: int = 0
    inputs: list[DeclaredValue] = field(default_factory=list)
    outputs: list[DeclaredValue] = field(default_factory=list)
    initializers: set[str] = field(default_factory=set)
    opset: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    _sized: list[_NodeToCheck] = field(default_factory=list)
    _factors: set[bytes] = field(default_factory=set)
    _used_otherwise: set[bytes] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The file's, for messages."""
        return self.tensors.name

    def factors(self) -> frozenset[str]:
        """The graph's own tensors that are nothing but the right factor of matrix products."""
        return frozenset(
            self.initializers.intersection(map(text, self._factors - self._used_otherwise))
        )

    def model(self, data: Bytes, start: int, end: int) -> None:
        """Walk a ModelProto.

        Raises: ValueError: not a well-formed model, or one with more than 256 metadata entries.
        """
        graphs = 0
        for number, at, stop in fields(data, start, end, self.name):
            if number == Model.GRAPH:
                graphs += 1
                self._graph(data, at, stop, 0)
            elif number == Model.FUNCTIONS:
                self.functions += 1
                self._function(data, at, stop)
            elif number == Model.OPSET_IMPORT:
                self._opset(data, at, stop)
            elif number == Model.METADATA_PROPS and stop - at <= _MAX_ENTRY:
                self._note(data[at:stop])
        if graphs != 1:
            raise ValueError(f"{self.name} is not an ONNX model: it has {graphs} graphs")
        for node in self._sized:
            self._check_node(node)

    def _opset(self, data: Bytes, start: int, end: int) -> None:
        domain, version = "", None
        for number, at, stop in fields(data, start, end, self.name):
            if number == Opset.DOMAIN:
                domain = text(data[at:stop])
            elif number == -Opset.VERSION:
                version = at
        if domain in ("", "ai.onnx"):
            self.opset = version

    def _note(self, data: bytes) -> None:
        entry = {n: text(data[at:stop]) for n, at, stop in fields(data, 0, len(data), self.name)}
        self.metadata[entry.get(Entry.KEY, "")] = entry.get(Entry.VALUE, "")
        if len(self.metadata) > _MAX_ENTRIES:
            raise ValueError(f"{self.name} has more than {_MAX_ENTRIES} metadata entries")

    def _function(self, data: Bytes, start: int, end: int) -> None:
        for number, at, stop in fields(data, start, end, self.name):
            if number == Function.NODE:
                self._node(data, at, stop, 1)
            elif number == Function.ATTRIBUTE_PROTO:
                self._attribute(data, at, stop, 1)

    def _graph(self, data: Bytes, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"{self.name} is nested too deeply for a protocol buffer")
        self.depth = max(self.depth, depth)
        for number, at, stop in fields(data, start, end, self.name):
            if number == Graph.NODE:
                self._node(data, at, stop, depth)
            elif number == Graph.INITIALIZER:
                name, _ = self.tensors.tensor(data, at, stop)
                if depth == 0:
                    self.initializers.add(name)
            elif number == Graph.SPARSE_INITIALIZER:
                self.tensors.sparse(data, at, stop)
            elif number in (Graph.INPUT, Graph.OUTPUT):
                value = DeclaredValue.read(data[at:stop], self.name)
                self.tensors.bound(f"'{value.name:.80}'", value.sizes)
                self._used_otherwise.add(value.name.encode())
                if depth == 0:
                    (self.inputs if number == Graph.INPUT else self.outputs).append(value)

    def _node(self, data: Bytes, start: int, end: int, depth: int) -> None:
        if end - start < _SMALL:  # bytes are faster than a mapped file
            data, start, end = data[start:end], 0, end - start
        operator, domain, inputs, outputs, attributes = b"", b"", [], [], []
        for number, at, stop in fields(data, start, end, self.name):
            if number == Node.INPUT:
                inputs.append(data[at:stop])
            elif number == Node.OUTPUT:
                outputs.append(data[at:stop])
            elif number == Node.OP_TYPE:
                operator = data[at:stop]
            elif number == Node.DOMAIN:
                domain = data[at:stop]
            elif number == Node.ATTRIBUTE:
                attributes.append((at, stop))
        key = text(domain), text(operator)
        if key[0] == "ai.onnx":  # another name of ""
            key = "", key[1]
        self.operators[key] += 1
        factor = inputs[1:2] if depth == 0 and key in _PRODUCTS else []
        self._factors.update(factor)
        self._used_otherwise.update(inputs[:1] + inputs[2:] if factor else inputs)
        for at, stop in attributes:
            constant = self._attribute(data, at, stop, depth)
            if key == ("", "Constant") and constant and outputs:
                self.tensors.constants.setdefault(text(outputs[0]), []).append(constant)
        if key[1] in SIZED:
            self._sized.append(_NodeToCheck(key[1], list(map(text, inputs))))

    def _attribute(self, data: Bytes, start: int, end: int, depth: int) -> list[float]:
        """Returns: the numbers in it, if they are few."""
        constant: list[float] = []
        seen = set()
        for number, at, stop in fields(data, start, end, self.name):
            if number in (Attribute.TENSOR, Attribute.GRAPH, Attribute.SPARSE_TENSOR):
                if number in seen:  # readers would join the two
                    raise ValueError(f"{self.name} is damaged: a field is repeated")
                seen.add(number)
            if number in (Attribute.TENSOR, Attribute.TENSORS):
                _, constant = self.tensors.tensor(data, at, stop)
            elif number in (Attribute.GRAPH, Attribute.GRAPHS):
                self._graph(data, at, stop, depth + 1)
            elif number in (Attribute.SPARSE_TENSOR, Attribute.SPARSE_TENSORS):
                self.tensors.sparse(data, at, stop)
            elif number == Attribute.INTS and stop - at <= LARGEST_CONSTANT:
                constant = [*packed_integers(data, at, stop, self.name)]
            elif number == -Attribute.INTS:
                constant = [*constant[:LARGEST_CONSTANT], signed(at)]
            elif number == -Attribute.INTEGER:
                constant = [signed(at)]
        return constant

    def _check_node(self, node: _NodeToCheck) -> None:
        for index in SIZED[node.operator]:
            name = node.inputs[index] if index < len(node.inputs) else ""
            for values in self.tensors.constants.get(name, []) if name else []:
                problem = growth(node.operator, index, values)
                if problem:
                    self.tensors.add(f"{node.operator}: {problem}")
