"""Inputs and outputs of an ONNX file with their dimension names, read without the onnx package.

OpenVINO and TensorRT discard the names of dynamic dimensions; a session needs them to check which
sizes must be equal.
"""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.wire_format import (
    DataType,
    Dimension,
    Graph,
    Model,
    Slice,
    Tensor,
    TensorShape,
    TensorType,
    Type,
    ValueInfo,
    open_model,
)
from sdexport.engines.session import ANY_SIZE, TensorSpec

_DTYPES: dict[int, str] = {
    DataType.FLOAT: "float32",
    DataType.UINT8: "uint8",
    DataType.INT8: "int8",
    DataType.INT32: "int32",
    DataType.INT64: "int64",
    DataType.BOOL: "bool",
    DataType.FLOAT16: "float16",
    DataType.DOUBLE: "float64",
    DataType.BFLOAT16: "bfloat16",
}

Specs = tuple[TensorSpec, ...]


def graph_specs(path: str | Path) -> tuple[Specs, Specs]:
    """Inputs and outputs of the graph; inputs that have an initializer are left out.

    Raises: EngineError: not a well-formed ONNX model. FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        with open_model(path) as model:
            return _specs(model.only(Model.GRAPH))
    except ValueError as error:
        problem = str(error).removeprefix(path.name).strip()
        raise EngineError(f"{path.parent.name or path.stem}: {path.name} {problem}") from None


def _specs(graph: Slice) -> tuple[Specs, Specs]:
    inputs, outputs, constants = [], [], set()
    for number, value in graph.fields():
        if number == Graph.INPUT:
            inputs.append(_spec(value))
        elif number == Graph.OUTPUT:
            outputs.append(_spec(value))
        elif number == Graph.INITIALIZER:
            constants.add(value.text(Tensor.NAME))
    return tuple(spec for spec in inputs if spec.name not in constants), tuple(outputs)


def _spec(value_info: Slice) -> TensorSpec:
    tensor = value_info.only(ValueInfo.TYPE).only(Type.TENSOR_TYPE)
    shape: list[int | str] = []
    for number, dimension in tensor.only(TensorType.SHAPE).fields():
        if number == TensorShape.DIM:
            size = dimension.integer(Dimension.DIM_VALUE)
            name = dimension.text(Dimension.DIM_PARAM) or ANY_SIZE
            shape.append(name if size is None else size)
    code = tensor.integer(TensorType.ELEM_TYPE)
    dtype = _DTYPES.get(code or 0, f"type {code}")
    return TensorSpec(value_info.text(ValueInfo.NAME), dtype, tuple(shape))
