"""Loading a package to generate images with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdexport.runtime.component_backends import Backends
from sdexport.runtime.packages.package import Package
from sdexport.runtime.packages.signature import TrustedKey
from sdexport.runtime.pipeline import Pipeline


def load_pipeline(
    folder: str | Path,
    backend: Backends = "onnxruntime",
    *,
    verify: bool = True,
    verify_hashes: bool = False,
    trusted_key: TrustedKey | None = None,
    trust: str = "warn",
    **options: Any,
) -> Pipeline:
    """Load a package to generate images with it.

    Args:
      folder: a package, or a folder that Optimum exported.
      backend: "onnxruntime", "openvino", "auto" and others; see Pipeline.
      verify: compare every file with its SHA-256. Large weight files are read for that while the
        components open: a component with an altered one is never run, and with an altered file
        anywhere in the package no image is returned.
      verify_hashes: read every file, also if its hash is remembered; see Package.load.
      trusted_key, trust: whose signature is required, and what graphs may hold; see Package.load.
      options: of Pipeline (max_batch, vae_tile, low_memory, lora_dir, expected_images),
        `engine_dir`, and of the backends' sessions (such as threads);
        sdexport.engines.session_options lists those of each backend.
    Raises: FileNotFoundError, PackageError: see Package.load. InvalidArgumentError: an unknown
      backend, or an option that no backend here has. A backend that is not installed raises an
      error when it is first used; see also Pipeline.warm_up.

    Example:
        >>> from sdexport import load_pipeline
        >>> with load_pipeline("package") as pipe:
        ...     image = pipe("a red circle", num_inference_steps=2, seed=0).images[0]
        >>> image.size
        (128, 128)
    """
    package = Package.load(
        folder,
        verify=verify,
        verify_hashes=verify_hashes,
        trusted_key=trusted_key,
        trust=trust,
        wait=False,
    )
    return Pipeline(package, backend, **options)
