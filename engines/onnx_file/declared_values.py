"""Inputs and outputs of a graph as its file declares them."""

from __future__ import annotations

from dataclasses import dataclass

from sdexport.engines.onnx_file.message_fields import fields, signed, text
from sdexport.engines.onnx_file.wire_format import (
    DataType,
    Dimension,
    TensorShape,
    TensorType,
    Type,
    ValueInfo,
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


@dataclass
class DeclaredValue:
    """An input or output.

    sizes: of its dimensions, where they are numbers. shapes: how many it declares; a tensor has
    one.
    """

    name: str = ""
    dtype: str = "type 0"
    shape: tuple[int | str, ...] = ()
    shapes: int = 0

    @classmethod
    def read(cls, data: bytes, file: str) -> DeclaredValue:
        """From a ValueInfoProto.

        Args:
          file: its name, for messages.
        Raises: ValueError: not a well-formed message.
        """
        value = cls()
        for number, at, stop in fields(data, 0, len(data), file):
            if number == ValueInfo.NAME:
                value.name = value.name or text(data[at:stop])
            elif number == ValueInfo.TYPE:
                for kind, begin, finish in fields(data, at, stop, file):
                    if kind == Type.TENSOR_TYPE:
                        value._read_tensor_type(data[begin:finish], file)
        return value

    @property
    def sizes(self) -> list[int]:
        """The sizes of all dimensions that have one."""
        return [size for size in self.shape if isinstance(size, int)]

    @property
    def spec(self) -> TensorSpec | None:
        """None if it is no tensor, or one without dimensions."""
        return TensorSpec(self.name, self.dtype, self.shape) if self.shapes == 1 else None

    def _read_tensor_type(self, data: bytes, file: str) -> None:
        for number, at, stop in fields(data, 0, len(data), file):
            if number == -TensorType.ELEM_TYPE:
                self.dtype = _DTYPES.get(at, f"type {at}")
            elif number == TensorType.SHAPE:
                self.shapes += 1
                for part, begin, finish in fields(data, at, stop, file):
                    if part == TensorShape.DIM:
                        self.shape += (_dimension(data[begin:finish], file),)


def _dimension(data: bytes, file: str) -> int | str:
    size, name = None, ""
    for number, at, stop in fields(data, 0, len(data), file):
        if number == -Dimension.DIM_VALUE:
            size = signed(at)
        elif number == Dimension.DIM_PARAM:
            name = name or text(data[at:stop])
    return (name or ANY_SIZE) if size is None else size
