"""The open components of a package: of a model in its pipeline, of an adapter alone."""

from __future__ import annotations

from typing import Any

from sdexport.runtime.adapters.adapter_sessions import AdapterSessions
from sdexport.runtime.component_backends import Backends
from sdexport.runtime.packages.package import Package
from sdexport.runtime.pipeline import Pipeline

OpenPackage = Pipeline | AdapterSessions


def open_package(
    package: Package,
    backend: Backends,
    *,
    low_memory: bool,
    vae_tile: int | None,
    max_batch: int | None,
    **options: Any,
) -> OpenPackage:
    """Open a package; see Pipeline for the arguments. An adapter has no VAE and no batches."""
    if package.manifest.is_adapter:
        return AdapterSessions(package, backend, options, low_memory=low_memory)
    return Pipeline(
        package,
        backend,
        low_memory=low_memory,
        vae_tile=vae_tile,
        max_batch=max_batch,
        **options,
    )
