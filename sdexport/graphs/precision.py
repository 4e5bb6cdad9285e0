"""The precisions of a package: what each means, and what a component gets of it.

The decision is made in the traced graph, so every backend is given the same one: TensorRT 11 and
TensorRT-RTX take types from the graph alone. Inputs and outputs stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING

from sdexport.engines.errors import InvalidArgumentError

if TYPE_CHECKING:
    import onnx_ir as ir

PRECISIONS: Mapping[str, str] = {
    "fp32": "float32",
    "fp16": "half precision, with float32 where half would not do",
    "bf16": "bfloat16, which OpenVINO and TensorRT-RTX take and ONNX Runtime on a CPU does not",
    "int8": "weights of 8 bits, for the CPU",
}
"""Each with what it means."""
OPSET_OF_BF16 = 22
"""The first in which convolutions take bfloat16."""
XL_VAE = "float32: SDXL's VAE; its activations overflow in half and the picture turns black"


class Conversion:
    """What is done to one component's graph: call it with the graph, then read `nodes`.

    precision: what the component gets, which need not be what was asked for.
    nodes: how many nodes are of that precision, and how many are not for each reason.
    """

    def __init__(self, precision: str, *, upcast_attention: bool = False, whole: str = "") -> None:
        self.precision = "fp32" if whole else precision
        self.nodes: dict[str, int] = {}
        self._upcast_attention, self._whole = upcast_attention, whole

    def __call__(self, model: ir.Model) -> None:
        import onnx_ir as ir

        from sdexport.graphs.half_precision import lower
        from sdexport.graphs.int8_weights import quantize

        if self.precision == "int8":
            self.nodes = quantize(model)
        elif self.precision != "fp32":
            dtype = ir.DataType.FLOAT16 if self.precision == "fp16" else ir.DataType.BFLOAT16
            self.nodes = lower(model, dtype, upcast_attention=self._upcast_attention)
        elif self._whole:
            self.nodes = {self._whole: len(model.graph)}


def conversion(precision: str, source: str, configs: Mapping[str, SimpleNamespace]) -> Conversion:
    """The conversion of a component that comes from the part `source` of a checkpoint."""
    overflows = precision == "fp16" and source == "vae" and "text_encoder_2" in configs
    upcast = bool(getattr(configs[source], "upcast_attention", False))
    return Conversion(precision, upcast_attention=upcast, whole=XL_VAE if overflows else "")


def check_precision(precision: str, opset: int) -> None:
    """Raises: InvalidArgumentError: no such precision, or none of that opset."""
    if precision not in PRECISIONS:
        raise InvalidArgumentError(
            f"unknown precision '{precision}'; choose one of {', '.join(PRECISIONS)}"
        )
    if precision == "bf16" and opset < OPSET_OF_BF16:
        raise InvalidArgumentError(
            f"precision bf16 needs opset {OPSET_OF_BF16} or later, in which convolutions take it; "
            f"got opset {opset}"
        )


def verifying_backends(precision: str) -> tuple[str, ...]:
    """The backends on a CPU that take a precision, the preferred one first."""
    return ("openvino",) if precision == "bf16" else ("onnxruntime", "openvino")


def verifying_backend(precision: str) -> str | None:
    """The first of them that is installed."""
    return next((name for name in verifying_backends(precision) if find_spec(name)), None)
