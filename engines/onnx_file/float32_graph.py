"""A graph with its weights as they are stored, and float32 in place of float16 and bfloat16.

Every weight of a lower precision is followed by a Cast, and every type that a node names becomes
float32. The data of weights is not read. Outputs then depend on the weights and the nodes alone,
and hardly on the engine or the processor.

A Cast depends on nothing but the weight, so an engine converts all weights before the first
product: 3.4 GB for SD 1.5's UNet. Unless that is wanted, the shape of each weight is computed with
another input of the node that uses it, in a way that adds nothing to it: the engine waits for that
input.

Source: https://protobuf.dev/programming-guides/encoding, and onnx.proto for the field numbers.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.message_fields import packed_integers
from sdexport.engines.onnx_file.wire_format import (
    Attribute,
    DataType,
    Dimension,
    Entry,
    Graph,
    Model,
    Node,
    Slice,
    Tensor,
    TensorShape,
    TensorType,
    Type,
    ValueInfo,
    open_model,
)
from sdexport.engines.onnx_file.wire_writer import (
    field,
    int_attribute,
    integer,
    ints_attribute,
    text,
)
from sdexport.engines.onnx_file.wire_writer import node as new_node

STORED = ".stored"
"""Added to the name of a weight of a lower precision."""
_LOWER = (DataType.FLOAT16, DataType.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision")
"""Attributes of nodes that hold a TensorProto.DataType."""
_MAX_DEPTH = 100
_MAX_SIZE = 2**40
"""More than any dimension has."""
Places = Mapping[str, tuple[str, int, int]]
"""By name of a weight, the file of its external data, and the first byte and the size in it."""


def in_float32(
    path: Path,
    *,
    at_once: bool = False,
    widened: Places | None = None,
    kept: Container[str] = (),
) -> bytes:
    """The model of a file as described above, as a ModelProto.

    Its external data stays where it is. Inputs with a default value are constants in it.

    Args:
      at_once: all weights may be converted before the first product.
      widened: where external data is in float32. Weights of a lower precision are float32 then:
        those in the file are converted here, those in external data were by the caller.
      kept: with `widened`, names of weights that stay as they are stored. They become inputs with a
        default value, so that an engine which optimises the graph converts them in each call.
    Raises: EngineError: not a well-formed ONNX model. FileNotFoundError: no such file.
    """
    try:
        with open_model(path) as model:
            return b"".join(
                field(number, _graph(value, at_once, widened, kept))
                if number == Model.GRAPH
                else whole.content()
                for number, value, whole in model.every_field()
            )
    except ValueError as error:
        raise EngineError(f"{path.parent.name or path.stem}: {path.name}: {error}") from None


def lower_precisions(path: Path) -> set[int]:
    """Data types of the weights of a lower precision that a file's graph has.

    Raises: EngineError: not a well-formed ONNX model. FileNotFoundError: no such file.
    """
    try:
        with open_model(path) as model:
            weights = (
                value
                for number, value in model.only(Model.GRAPH).fields()
                if number == Graph.INITIALIZER
            )
            return {each.integer(Tensor.DATA_TYPE) or 0 for each in weights} & {*_LOWER}
    except ValueError as error:
        raise EngineError(f"{path.parent.name or path.stem}: {path.name}: {error}") from None


def _graph(
    graph: Slice,
    at_once: bool,
    widened: Places | None,
    kept: Container[str] = (),
    depth: int = 0,
) -> bytes:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{graph.name} is nested too deeply for a protocol buffer")
    lower: dict[str, list[int]] = {}
    constants = set()
    for number, value in graph.fields():
        if number == Graph.INITIALIZER:
            name = value.text(Tensor.NAME)
            constants.add(name)
            is_stored = widened is None or name in kept
            if value.integer(Tensor.DATA_TYPE) in _LOWER and is_stored:
                lower[name] = _dims(value)
    waiting, parts = dict(lower), []
    zeros: dict[str, str] = {}
    for number, value, whole in graph.every_field():
        if number == Graph.VALUE_INFO:
            continue
        if number == Graph.INPUT and value.text(ValueInfo.NAME) in constants:
            continue  # nobody gives it another value, and its type changes
        if number == Graph.INITIALIZER and (name := value.text(Tensor.NAME)) in lower:
            parts.append(field(number, _renamed(value, name + STORED, widened)))
            if widened is not None:
                parts.append(_input(name + STORED, value.integer(Tensor.DATA_TYPE), lower[name]))
        elif number == Graph.INITIALIZER and widened is not None:
            parts.append(field(number, _widened(value, widened)))
        elif number == Graph.NODE:
            names = [each.content().decode() for at, each in value.fields() if at == Node.INPUT]
            waited = () if at_once else names
            other = next((name for name in waited if name and name not in constants), "")
            for used in names:
                if used in waiting and widened is not None:
                    parts += _converted_late(used, waiting.pop(used), other, zeros)
                elif used in waiting:
                    parts += _converted(used, waiting.pop(used), other)
            parts.append(field(number, _node(value, at_once, widened, depth)))
        else:
            parts.append(whole.content())
    unused = [part for name in waiting for part in _converted(name, [], "")]  # by subgraphs only
    return b"".join((*unused, *parts))


def _dims(tensor: Slice) -> list[int]:
    parts = [value.content() for number, value, _ in tensor.every_field() if number == Tensor.DIMS]
    data = b"".join(parts)  # packed or not
    return packed_integers(data, 0, len(data), tensor.name)


def _renamed(tensor: Slice, name: str, places: Places | None) -> bytes:
    """A weight under another name, and where its external data now is."""
    place = (places or {}).get(tensor.text(Tensor.NAME))
    dropped = (Tensor.NAME, *((Tensor.EXTERNAL_DATA,) if place else ()))
    kept = [whole.content() for number, _, whole in tensor.every_field() if number not in dropped]
    return b"".join((*kept, text(Tensor.NAME, name), *(_external(place) if place else ())))


def _external(place: tuple[str, int, int]) -> list[bytes]:
    """The fields of a tensor that say where its data is."""
    pairs = zip(("location", "offset", "length"), map(str, place), strict=True)
    return [
        field(Tensor.EXTERNAL_DATA, text(Entry.KEY, key) + text(Entry.VALUE, value))
        for key, value in pairs
    ]


def _input(name: str, kind: int | None, dims: list[int]) -> bytes:
    """An input of the graph."""
    sizes = (field(TensorShape.DIM, integer(Dimension.DIM_VALUE, size)) for size in dims)
    shape = field(TensorType.SHAPE, b"".join(sizes))
    tensor = integer(TensorType.ELEM_TYPE, kind or 0) + shape
    value = text(ValueInfo.NAME, name) + field(ValueInfo.TYPE, field(Type.TENSOR_TYPE, tensor))
    return field(Graph.INPUT, value)


def _widened(tensor: Slice, places: Places) -> bytes:
    """A weight as float32, if it is of a lower precision, and where its external data now is."""
    is_lower = tensor.integer(Tensor.DATA_TYPE) in _LOWER
    place = places.get(tensor.text(Tensor.NAME))
    if place is None:
        return _constant(tensor)
    dropped = (Tensor.EXTERNAL_DATA, *((Tensor.DATA_TYPE,) if is_lower else ()))
    kept = [whole.content() for number, _, whole in tensor.every_field() if number not in dropped]
    new = [integer(Tensor.DATA_TYPE, DataType.FLOAT)] if is_lower else []
    return b"".join((*kept, *new, *_external(place)))


def _converted(name: str, dims: list[int], other: str) -> list[bytes]:
    """The nodes that convert a weight to float32, once `other` is known.

    Args:
      dims: of the weight. other: another input of the node that uses it; "" for none.
    """
    source = name + STORED
    nodes = []
    if dims and other:
        known, nothing, shape, waited = (
            f"{name}.{each}" for each in ["dims", "none", "shape", "waited"]
        )
        nodes = [
            new_node("Constant", [], known, ints_attribute("value_ints", dims)),
            new_node(
                "Shape", [other], nothing, int_attribute("start", 0), int_attribute("end", 0)
            ),  # no dimension
            new_node("Concat", [known, nothing], shape, int_attribute("axis", 0)),
            new_node("Reshape", [source, shape], waited),
        ]
        source = waited
    return [*nodes, new_node("Cast", [source], name, int_attribute("to", DataType.FLOAT))]


def _converted_late(name: str, dims: list[int], other: str, zeros: dict[str, str]) -> list[bytes]:
    """The same for an engine that optimises the graph: it knows no size of `other` beforehand.

    The weight is given its own shape, plus 0: the first size of `other`, divided by more than it
    can be. An engine looks through other ways to join the two.

    Args:
      zeros: by name of an input, that of its 0; new ones are added.
    """
    source, nodes = name + STORED, []
    if dims and other:
        if other not in zeros:
            first, most, zeros[other] = (f"{other}.{each}" for each in ("first", "most", "zero"))
            nodes = [
                new_node(
                    "Shape", [other], first, int_attribute("start", 0), int_attribute("end", 1)
                ),
                new_node("Constant", [], most, ints_attribute("value_ints", [_MAX_SIZE])),
                new_node("Div", [first, most], zeros[other]),
            ]
        known, shape, waited = (f"{name}.{each}" for each in ("dims", "shape", "waited"))
        nodes += [
            new_node("Constant", [], known, ints_attribute("value_ints", dims)),
            new_node("Add", [known, zeros[other]], shape),
            new_node("Reshape", [source, shape], waited),
        ]
        source = waited
    return [*nodes, new_node("Cast", [source], name, int_attribute("to", DataType.FLOAT))]


def _node(node: Slice, at_once: bool, widened: Places | None, depth: int) -> bytes:
    return b"".join(
        field(number, _attribute(value, at_once, widened, depth))
        if number == Node.ATTRIBUTE
        else whole.content()
        for number, value, whole in node.every_field()
    )


def _attribute(attribute: Slice, at_once: bool, widened: Places | None, depth: int) -> bytes:
    named = attribute.text(Attribute.NAME) in _TYPE_ATTRIBUTES
    lower = named and attribute.integer(Attribute.INTEGER) in _LOWER
    return b"".join(_attribute_fields(attribute, lower, at_once, widened, depth))


def _attribute_fields(
    attribute: Slice, lower: bool, at_once: bool, widened: Places | None, depth: int
) -> Iterator[bytes]:
    for number, value, whole in attribute.every_field():
        if number == Attribute.INTEGER and lower:
            yield integer(number, DataType.FLOAT)
        elif number in (Attribute.TENSOR, Attribute.TENSORS):
            yield field(number, _constant(value))
        elif number in (Attribute.GRAPH, Attribute.GRAPHS):
            yield field(number, _graph(value, at_once, widened, (), depth + 1))
        else:
            yield whole.content()


def _constant(tensor: Slice) -> bytes:
    """A tensor in an attribute, converted to float32."""
    dtype = tensor.integer(Tensor.DATA_TYPE)
    if dtype not in _LOWER:
        return tensor.content()
    raw = [value for number, value in tensor.fields() if number == Tensor.RAW_DATA]
    if len(raw) != 1:
        raise ValueError("a constant of a lower precision has no raw data")
    if dtype == DataType.FLOAT16:
        values = np.frombuffer(raw[0].content(), "<f2").astype("<f4")
    else:
        values = (np.frombuffer(raw[0].content(), "<u2").astype("<u4") << 16).view("<f4")
    kept = [
        whole.content()
        for number, _, whole in tensor.every_field()
        if number not in (Tensor.DATA_TYPE, Tensor.RAW_DATA)
    ]
    converted = field(Tensor.RAW_DATA, values.tobytes())
    return b"".join((*kept, integer(Tensor.DATA_TYPE, DataType.FLOAT), converted))
