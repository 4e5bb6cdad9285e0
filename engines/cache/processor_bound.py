"""Graphs that were prepared for one kind of processor: what they must match to be used here."""

from __future__ import annotations

from sdexport.engines.cache.processor import kernel_target
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.cache.staleness import Requirements


def requirements_here(
    backend: str,
    library: str,
    *,
    rewrites: tuple[str, int],
    digest: str | None,
    package: str | None,
    version: str | None,
) -> Requirements:
    """What a prepared graph must have been built from, with and for to be used here.

    Args:
      library: its name, for messages.
      rewrites: the sidecar's option with the version of the rewrites, and the present version.
      digest, package: see Requirements.onnx_sha256 and package_sha256.
      version: of the library. None: not compared.
    """

    def problems(sidecar: Sidecar) -> list[str]:
        return _problems(sidecar, *rewrites)

    return Requirements(
        backend=backend,
        library=library,
        onnx_sha256=digest,
        package_sha256=package,
        graph_sha256=str,  # weights cannot be put into a prepared graph
        library_version=version,
        problems=problems,
    )


def _problems(sidecar: Sidecar, option: str, version: int) -> list[str]:
    """Why a graph that was prepared elsewhere, or by another sdexport, is not used here."""
    problems = []
    if dict(sidecar.target) != kernel_target():
        problems.append("it was built on another kind of processor")
    present = sidecar.options.get(option)
    if present != version:
        problems.append(f"it was built by version {present!r:.20} of the rewrites, not {version}")
    return problems
