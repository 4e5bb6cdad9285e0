"""Options of a build with TensorRT or TensorRT-RTX, and whether they can be used here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sdexport.engines import cuda_device
from sdexport.engines.errors import EngineError, InvalidArgumentError
from sdexport.engines.trt.library import Library
from sdexport.engines.trt.supported_gpus import check_capabilities

PORTABLE = "portable"
AMPERE_AND_LATER = "8.0 and later"
"""Targets that are not a list of compute capabilities."""


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built; all options are part of its key.

    refittable: weights can be replaced by those of another ONNX file of the same graph.
    weight_stripped: the plan has no weights; they come from the ONNX file when it is opened.
    version_compatible: the plan runs with later versions of TensorRT too.
    hardware_compatible: TensorRT: the plan runs on every GPU from Ampere on.
    compute_capabilities: TensorRT-RTX: such as ("8.9", "12.0"); empty for its own portable list.
    optimization_level: 0..5, or None for the library's default.
    workspace: most bytes of scratch memory for one layer; None sets no limit.
    weight_streaming: weights can stay in host memory and be streamed.
    """

    refittable: bool = False
    weight_stripped: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace: int | None = None
    weight_streaming: bool = False

    def __post_init__(self) -> None:
        level = self.optimization_level
        if level is not None and level not in range(6):
            raise InvalidArgumentError(f"optimization_level must be 0 to 5, got {level!r:.40}")
        if self.workspace is not None and (
            not isinstance(self.workspace, int) or self.workspace < 1
        ):
            raise InvalidArgumentError(
                f"workspace must be a positive number of bytes, got {self.workspace!r:.40}"
            )
        if self.weight_stripped and not self.refittable:
            object.__setattr__(self, "refittable", True)

    def key(self) -> dict[str, Any]:
        """The options as JSON values, for the sidecar."""
        return asdict(self) | {"compute_capabilities": list(self.compute_capabilities)}


def check_options(
    component: str, lib: Library, options: BuildOptions, timing_cache: object = None
) -> None:
    """Check that a library can build with these options on this machine.

    Raises: InvalidArgumentError: the library does not have an option, or cannot build for a compute
      capability. EngineError: the build needs a GPU, and there is none.
    """
    if lib.portable and timing_cache:
        raise InvalidArgumentError(
            f"{component}: {lib.name} measures nothing when it builds: a timing cache "
            "(--timing-cache) has no effect, and would make the build need a GPU"
        )
    if lib.portable:
        check_capabilities(component, lib, options.compute_capabilities)
    if lib.portable and options.hardware_compatible:
        raise InvalidArgumentError(
            f"{component}: {lib.name} has no option hardware_compatible; its plans are portable by "
            "default, or for the compute_capabilities that you list"
        )
    if not lib.portable and options.compute_capabilities:
        raise InvalidArgumentError(
            f"{component}: {lib.name} builds for the GPU of this machine; only TensorRT-RTX has "
            "the option compute_capabilities"
        )
    if not lib.portable:
        need = "building"
    elif options.weight_stripped or options.refittable:
        need = "a weight-stripped plan" if options.weight_stripped else "a refittable plan"
    else:
        return
    reason = cuda_device.absent()
    if reason:
        raise EngineError(f"{component}: {need} with {lib.name} needs an NVIDIA GPU here: {reason}")


def target(lib: Library, options: BuildOptions) -> dict[str, str]:
    """The GPUs that a plan is for, as its sidecar has them."""
    if lib.portable:
        return {"compute_capabilities": ", ".join(options.compute_capabilities) or PORTABLE}
    if options.hardware_compatible:
        return {"compute_capabilities": AMPERE_AND_LATER}
    gpu = cuda_device.gpu()
    return {"gpu": gpu.name, "compute_capability": gpu.compute_capability}
