"""The configuration of one of Triton's models, config.pbtxt, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}
"""Triton's name of each dtype that its ONNX Runtime backend takes."""
KINDS = {"cpu": "KIND_CPU", "gpu": "KIND_GPU"}
ANY = -1
"""Stands for any size in `dims`."""


@dataclass(frozen=True)
class ConfigTensor:
    """An input or output.

    dtype: one of DATA_TYPES. dims: without the batch dimension, where the model has one; ANY for
    any size. has_no_dims: the model's own tensor has no dimension but the batch, which Triton
    cannot say: `dims` is (1,) then, and the model gets and returns the tensor without that
    dimension. Clients and other models of the server have it.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False
    has_no_dims: bool = False

    def text(self) -> Iterator[str]:
        """The lines of its message."""
        yield f"name: {quoted(self.name)}"
        yield f"data_type: {DATA_TYPES[self.dtype]}"
        yield f"dims: [ {', '.join(map(str, self.dims))} ]"
        if self.has_no_dims:
            yield "reshape: { shape: [ ] }"
        if self.optional:
            yield "optional: true"


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a model.

    backend: of Triton. max_batch_size: rows of the batch at most; 0 if the tensors have no batch
    dimension that all share. queue_delay: microseconds for which a request waits for others to run
    with it; it has no effect without a batch dimension. instances: how many run at the same time.
    kind: one of KINDS.
    """

    name: str
    backend: str
    inputs: tuple[ConfigTensor, ...]
    outputs: tuple[ConfigTensor, ...]
    max_batch_size: int = 0
    queue_delay: int = 0
    instances: int = 1
    kind: str = "gpu"

    def text(self) -> str:
        """The content of config.pbtxt."""
        lines = [
            f"name: {quoted(self.name)}",
            f"backend: {quoted(self.backend)}",
            f"max_batch_size: {self.max_batch_size}",
            *_repeated("input", self.inputs),
            *_repeated("output", self.outputs),
            f"instance_group [ {{ count: {self.instances} kind: {KINDS[self.kind]} }} ]",
            "version_policy: { specific: { versions: [ 1 ] } }",
        ]
        if self.max_batch_size > 1:
            delay = f"max_queue_delay_microseconds: {self.queue_delay}"
            lines.append(f"dynamic_batching {{ {delay} }}")
        return "\n".join(lines) + "\n"


def _repeated(field: str, tensors: tuple[ConfigTensor, ...]) -> Iterator[str]:
    for tensor in tensors:
        yield f"{field} {{"
        yield from (f"  {line}" for line in tensor.text())
        yield "}"


def quoted(text: str) -> str:
    """A string literal of protobuf's text format, whatever the text holds."""
    data = text.encode("utf-8", "surrogateescape")
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in data)
    return f'"{"".join(plain)}"'
