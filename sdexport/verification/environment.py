"""What is verified, where and with what, in words."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from sdexport.engines.cache.processor import cpuinfo
from sdexport.runtime.component_backends import BackendSpec
from sdexport.runtime.version import __version__
from sdexport.verification.open_package import OpenPackage

LIBRARIES = (
    *("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    *("numpy", "pillow"),
)
_NOT_ARITHMETIC = ("threads", "streams", "cache_dir", "engine_dir", "runtime_cache", "cuda_graphs")
"""Options of sessions that are about speed or folders."""


def environment(pipeline: OpenPackage) -> dict[str, str]:
    """The package, the versions and the machine of a verification, by what they are called."""
    package = pipeline.package
    manifest = package.manifest
    precisions = {component.precision for component in manifest.components.values()}
    backends = {shown_backend(pipeline.opened_with(name)) for name in manifest.components}
    about = {
        "package": package.folder.resolve().name,
        "family": manifest.family,
        "precision": ", ".join(sorted(precisions)),
        "digest": package.digest or "",
        "source": ", ".join(f"{key} {value}" for key, value in manifest.source.items()),
        "exported with": ", ".join(f"{key} {value}" for key, value in manifest.tools.items()),
        "verified with": f"sdexport {__version__}, {', '.join(_versions())}",
        "backend": ", ".join(sorted(backends)),
        "machine": _machine(),
        "python": platform.python_version(),
    }
    return {key: value for key, value in about.items() if value}


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> str:
    """The processor, the number of its cores, and the operating system."""
    processor = cpuinfo().get("model name") or platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def shown_backend(spec: BackendSpec) -> str:
    """A backend with the options of its session that change what is computed."""
    options = {k: v for k, v in spec.options.items() if k not in _NOT_ARITHMETIC}
    return str(BackendSpec(spec.name, options))


def within(folder: Path, path: Path | None) -> str:
    """A path from the package's folder where it is inside, with forward slashes; "" for None."""
    if path is None:
        return ""
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
