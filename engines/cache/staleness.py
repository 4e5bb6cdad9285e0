"""Why a built engine cannot be used: it was built from, with or for something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines.cache.profiles import Profile, show
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.errors import EngineError
from sdexport.engines.messages import plain

Target = Mapping[str, str]


@dataclass(frozen=True)
class Requirements:
    """What an engine is compared with; None is not compared.

    backend: that opens it. library: the name of the backend's library, for messages.
    onnx_sha256: see sidecar.model_digest.
    package_sha256: of the package that the file belongs to, "" if it has no manifest.
    graph_sha256: returns onnx_file.graph_digest of the same file, or "" if weights can never be put
      into engines of this backend; called only for an engine of another file.
    library_version: the installed one; a version-compatible plan fits every version.
    problems: what else is wrong with an engine here, such as its target, in words.
    """

    backend: str
    library: str
    onnx_sha256: str | None
    package_sha256: str | None
    graph_sha256: Callable[[], str]
    library_version: str | None
    problems: Callable[[Sidecar], list[str]] | None


def stale_reasons(sidecar: Sidecar, required: Requirements) -> list[str]:
    """Why an engine cannot be used for an ONNX file on this machine, in words; [] if it can.

    An engine of another file of the same graph, or of another package, can be used if weights can
    be put into it.
    """
    reasons = _model_reasons(sidecar, required)
    if sidecar.backend != required.backend:
        reasons.append(f"it was built for {sidecar.backend}")
    if not sidecar.options.get("version_compatible"):
        reasons += _version_reasons(sidecar, required)
    if required.problems is not None:
        reasons += required.problems(sidecar)
    return reasons


def fitting_sidecar(plan: Path, required: Requirements) -> Sidecar | None:
    """The sidecar of an engine that can be used; None if there is none, or it fits something else.

    The engine's own content is not compared.
    """
    try:
        sidecar = Sidecar.read(plan)
    except (EngineError, OSError):
        return None
    return None if stale_reasons(sidecar, required) else sidecar


def key_differences(sidecar: Sidecar, wanted: Sidecar) -> list[str]:
    """Why a present engine is not the one that would be built, in words; [] if it is.

    In addition to `stale_reasons`, versions, profiles and options must be equal.
    """
    required = Requirements(
        backend=wanted.backend,
        library=wanted.backend,
        onnx_sha256=wanted.onnx_sha256,
        package_sha256=wanted.package_sha256,
        graph_sha256=lambda: wanted.graph_sha256 if "refittable" in wanted.options else "",
        library_version=wanted.library_version,
        problems=lambda present: _value_differences(present.target, wanted.target),
    )
    differences = stale_reasons(sidecar, required)
    if sidecar.options.get("version_compatible"):
        differences += _version_reasons(sidecar, required)
    differences += _value_differences(sidecar.options, wanted.options)
    if sidecar.profiles != wanted.profiles:
        present, other = _listed(sidecar.profiles), _listed(wanted.profiles)
        differences.append(f"profiles {present} instead of {other}")
    return differences


def _model_reasons(sidecar: Sidecar, required: Requirements) -> list[str]:
    if required.onnx_sha256 in (None, sidecar.onnx_sha256):
        reason = other_package(sidecar, required.package_sha256)
        return [reason] if reason and not sidecar.options.get("refittable") else []
    hint = ""
    if sidecar.graph_sha256 == required.graph_sha256():
        if sidecar.options.get("refittable"):
            return []
        hint = ", of the same graph: --refittable would take its weights"
    return [f"it was built from another ONNX file{hint}"]


def other_package(sidecar: Sidecar, package_sha256: str | None) -> str:
    """In words, if an engine was built for another package with the same ONNX file; else ""."""
    if package_sha256 in (None, sidecar.package_sha256):
        return ""
    built_for, present = map(_package_name, (sidecar.package_sha256, str(package_sha256)))
    return f"it was built for {built_for} with the same ONNX file, here is {present}"


def _package_name(digest: str) -> str:
    return f"the package {digest:.12}" if digest else "a folder without sdexport.json"


def _version_reasons(sidecar: Sidecar, required: Requirements) -> list[str]:
    present = required.library_version
    if present in (None, sidecar.library_version):
        return []
    return [f"it was built with {required.library} {sidecar.library_version}, here is {present}"]


def _value_differences(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{plain(key.replace('_', ' '))} {plain(str(present.get(key)))} instead of "
        f"{plain(str(wanted.get(key)))}"
        for key in dict.fromkeys([*present, *wanted])
        if present.get(key) != wanted.get(key)
    ]


def _listed(profiles: Sequence[Profile]) -> str:
    return "; ".join(show(profile) or "fixed" for profile in profiles)
