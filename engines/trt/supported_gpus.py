"""The GPUs that TensorRT-RTX's plans run on, by compute capability, as the library lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sdexport.engines.cuda_device import Gpu
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.trt.library import Library

TURING = "7.5"
NO_TURING = (
    "compute capability 7.5 (Turing) takes only some graphs and no bfloat16, and sdexport does not "
    "build for it; use --backend onnxruntime-cuda on such a GPU"
)


def listed(lib: Library) -> tuple[str, ...]:
    """The compute capabilities that the installed library can build for, such as "8.9".

    7.5 is left out: see NO_TURING.
    A plan that is built for no particular one runs on all of them.

    Returns: () for a library without such a list: its plans are for the GPU that built them.
    Raises: MissingDependencyError: it is not installed.
    """
    members = getattr(lib.load(), "ComputeCapability", None)
    if not lib.portable or members is None:
        return ()
    names = (re.fullmatch(r"SM(\d+)(\d)", name) for name in members.__members__)
    found = (f"{int(name[1])}.{name[2]}" for name in names if name)
    return tuple(capability for capability in found if capability != TURING)


def member(trt: Any, capability: str) -> Any:
    """The library's own constant of a compute capability of `listed`."""
    return trt.ComputeCapability.__members__[f"SM{capability.replace('.', '')}"]


def check_capabilities(component: str, lib: Library, capabilities: Sequence[str]) -> None:
    """Raises: InvalidArgumentError: the library cannot build for one, or one is given twice."""
    known = listed(lib)
    for capability in capabilities:
        if capability == TURING:
            raise InvalidArgumentError(f"{component}: {lib.name}: {NO_TURING}")
        if capability not in known:
            raise InvalidArgumentError(
                f"{component}: {lib.name} cannot build for compute capability "
                f"{capability!r:.20}; it knows {', '.join(known)}"
            )
    if len(set(capabilities)) < len(capabilities):
        raise InvalidArgumentError(
            f"{component}: a compute capability is given twice: {', '.join(capabilities)}"
        )


def gpu_problem(lib: Library, gpu: Gpu) -> str:
    """Why no plan of a library can run on a GPU, in words; "" if one can."""
    known = listed(lib)
    if not known or gpu.compute_capability in known:
        return ""
    return (
        f"{lib.name} does not run on {gpu.name} (compute capability {gpu.compute_capability}), "
        f"only on {', '.join(known)}"
    )
