"""The precisions of a package, and the conversion that each component gets.

Types are fixed in the traced graph, so every backend computes with the same ones: TensorRT 11 and
TensorRT-RTX take types from the graph alone. Inputs and outputs stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.models.components import ComponentSpec, Role

if TYPE_CHECKING:
    import onnx_ir as ir

    from sdexport.runtime.models.family import ModelFamily

PRECISIONS: Mapping[str, str] = {
    "fp32": "float32",
    "fp16": "float16, with float32 where float16 is not enough",
    "bf16": "bfloat16, for OpenVINO and TensorRT-RTX; ONNX Runtime does not run it on a CPU",
    "int8": "int8 weights, for the CPU",
}
"""By name, with a description for the help text."""
OPSET_OF_BF16 = 22
"""The first opset whose convolutions accept bfloat16."""
XL_VAE = "float32: SDXL's VAE; its activations overflow in float16 and the image turns black"


class Conversion:
    """The conversion of one component's graph: call it with the graph, then read `nodes`.

    precision: what the component is converted to; "fp32" if it cannot have the package's precision.
    nodes: the number of nodes of that precision, and of others under each reason.
    """

    def __init__(
        self, precision: str, *, upcast_attention: bool = False, keep_reason: str = ""
    ) -> None:
        self.precision = "fp32" if keep_reason else precision
        self.nodes: dict[str, int] = {}
        self._upcast_attention, self._keep_reason = upcast_attention, keep_reason

    def __call__(self, model: ir.Model) -> None:
        import onnx_ir as ir

        from sdexport.graphs.half_precision import lower
        from sdexport.graphs.int8_weights import quantize

        if self.precision == "int8":
            self.nodes = quantize(model)
        elif self.precision != "fp32":
            dtype = ir.DataType.FLOAT16 if self.precision == "fp16" else ir.DataType.BFLOAT16
            self.nodes = lower(model, dtype, upcast_attention=self._upcast_attention)
        elif self._keep_reason:
            self.nodes = {self._keep_reason: len(model.graph)}


def conversion(
    precision: str, component: ComponentSpec, family: ModelFamily, config: SimpleNamespace
) -> Conversion:
    """The conversion for a component of a package.

    Args:
      precision: of the package. config: the component's configuration in the checkpoint.
    """
    is_vae = component.role in (Role.VAE_DECODER, Role.VAE_ENCODER)
    overflows = precision == "fp16" and is_vae and not family.half_precision_vae
    upcast = bool(getattr(config, "upcast_attention", False))
    return Conversion(precision, upcast_attention=upcast, keep_reason=XL_VAE if overflows else "")


def check_precision(precision: str, opset: int) -> None:
    """Raises: InvalidArgumentError: no such precision, or the opset does not support it."""
    if precision not in PRECISIONS:
        raise InvalidArgumentError(
            f"unknown precision '{precision}'; choose one of {', '.join(PRECISIONS)}"
        )
    if precision == "bf16" and opset < OPSET_OF_BF16:
        raise InvalidArgumentError(
            f"precision bf16 needs opset {OPSET_OF_BF16} or later, whose convolutions accept it; "
            f"got opset {opset}"
        )


def verifying_backends(precision: str) -> tuple[str, ...]:
    """The backends that run a precision on a CPU, the preferred one first."""
    return ("openvino",) if precision == "bf16" else ("onnxruntime", "openvino")


def verifying_backend(precision: str) -> str | None:
    """The first of `verifying_backends` that is installed; None if there is none."""
    return next((name for name in verifying_backends(precision) if find_spec(name)), None)
