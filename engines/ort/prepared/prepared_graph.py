"""Files and sidecar of a graph that `sdexport build` has prepared for ONNX Runtime.

A prepared graph is optimised, and its weights are stored in the layout that the kernels of one kind
of processor read. To open it is to map that file: nothing is computed or copied.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from sdexport.engines.cache.processor_bound import requirements_here
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.cache.staleness import Requirements
from sdexport.engines.errors import EngineError

BACKEND = "onnxruntime"
MULTIPLES = "multiples"
"""Option of the sidecar: by input, the number of which its height and width must be multiples."""
PASSES = "passes"
"""Option of the sidecar: the version of the rewrites that the graph was prepared by."""
REWRITES_VERSION = 3
"""Version of the rewrites (sdexport.graphs.cpu); graphs prepared by another one are stale."""


def installed_version() -> str | None:
    """The version of ONNX Runtime; None if it is not installed as a package."""
    from importlib import metadata  # takes longer than all of this module

    for name in ("onnxruntime", "onnxruntime-gpu"):  # never both
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def requirements(*, digest: str | None, package: str | None, version: str | None) -> Requirements:
    """What a prepared graph must match to be used here; see processor_bound."""
    return requirements_here(
        BACKEND,
        "ONNX Runtime",
        rewrites=(PASSES, REWRITES_VERSION),
        digest=digest,
        package=package,
        version=version,
    )


def multiples(sidecar: Sidecar) -> dict[str, int]:
    """By input, the number of which its height and width must be multiples.

    Raises: EngineError: the sidecar does not hold numbers by input.
    """
    entries, known = sidecar.options.get(MULTIPLES) or {}, {spec.name for spec in sidecar.inputs}
    if not isinstance(entries, dict) or not entries.keys() <= known:
        raise EngineError(
            f"{sidecar.component}: '{MULTIPLES}' in its sidecar names an unknown input"
        )
    if not all(isinstance(number, int) and number > 0 for number in entries.values()):
        raise EngineError(
            f"{sidecar.component}: '{MULTIPLES}' in its sidecar must be positive integers"
        )
    return entries


_ALIGNMENT = 64
"""Bytes; kernels for AVX-512 read weights with instructions that need it."""
_KERNEL_WEIGHTS = re.compile(rb"\|(\d+);\d+;\d+")
"""Where the copy of a weight for a kernel begins in the data file, as ONNX Runtime notes it."""


def is_aligned(plan: Path) -> bool:
    """Whether every copy of a weight for a kernel begins at a multiple of 64 bytes.

    ONNX Runtime (1.32) writes them one after the other, so that they do not if a weight has another
    size. The process would be killed by a segmentation fault when its kernel reads such a copy.
    """
    begins = map(int, _KERNEL_WEIGHTS.findall(plan.read_bytes()))
    return all(begin % _ALIGNMENT == 0 for begin in begins)


def data_path(plan: Path) -> Path:
    """The file of a prepared graph's weights."""
    return plan.with_name(f"{plan.name}_data")
