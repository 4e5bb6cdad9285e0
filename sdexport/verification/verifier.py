"""Does a package reproduce PyTorch's reference outputs? Checked without PyTorch.

The reference outputs were recorded when the package was exported (reference/*.npz).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.array_files import read_arrays
from sdexport.engines.errors import PackageError
from sdexport.engines.files import sha256_of
from sdexport.engines.guarded_files import REFERENCE_LIMIT
from sdexport.engines.messages import one_line
from sdexport.runtime.component_backends import Backends, backend_of
from sdexport.runtime.component_engines import runs_on
from sdexport.runtime.packages.package import Package
from sdexport.runtime.pipeline import Pipeline
from sdexport.verification.comparison import (
    FAILURES,
    compare_images,
    compare_outputs,
    failed_check,
    failed_image,
    with_prefix,
)
from sdexport.verification.float32_outputs import with_float32
from sdexport.verification.limits import Arithmetics, graph_limits, image_limits
from sdexport.verification.report import Check, Measure

REFERENCE_IMAGE = "image"
"""Name of the reference image's file in reference/."""
LARGEST_SIDE = 256
"""Largest width and height of a reference image, in pixels."""
Progress = Callable[[str], object]
"""Called with what is checked next: "hashes", the name of a component, or "image"."""


def verify(
    folder: str | Path,
    backend: Backends = "onnxruntime",
    *,
    progress: Progress = lambda what: None,
    **options: Any,
) -> list[Check]:
    """Check every file's hash, run every component on its reference inputs, generate the image.

    Args:
      folder: the package.
      backend, options: how components are opened; see sdexport.engines.open_session.
      progress: see Progress.
    Returns: one row for each hash check and each output; it passed if all have `passed`.
    Raises: FileNotFoundError: no such folder. PackageError: not a package, or files are missing.
      MissingDependencyError: the backend is not installed.

    Example:
        >>> import sdexport
        >>> checks = sdexport.verify("package")
        >>> all(check.passed for check in checks)
        True
    """
    package = Package.load(folder, verify=False)
    return verify_package(package, backend, progress=progress, **options)


def verify_package(
    package: Package,
    backend: Backends = "onnxruntime",
    *,
    hashes: bool = True,
    only: str | None = None,
    progress: Progress = lambda what: None,
    **options: Any,
) -> list[Check]:
    """Like `verify`, for a package that is loaded already.

    Args:
      hashes: False skips them, for files that were just written.
      only: a component, to compare its outputs alone, without the image.
    """
    checks = []
    if hashes:
        progress("hashes")
        checks = [_hash_check(package, name) for name in ("package", *package.manifest.components)]
    references = {p.stem: p for p in sorted((package.folder / "reference").glob("*.npz"))}
    if not references:
        raise PackageError(f"{package.folder} holds no reference outputs (reference/*.npz)")
    runs = Arithmetics(package, backend, options)
    with Pipeline(package, backend, **options) as pipeline:
        for name in package.graphs:
            if only is not None and name.partition(".")[0] != only:
                continue
            if name in package.manifest.components:
                progress(name)
            if runs_on(package, name, backend_of(backend, name).name, options.get("engine_dir")):
                checks += _component_checks(pipeline, name, references.get(name), runs)
        if only is not None:
            return checks
        progress("image")
        checks.append(_image_check(pipeline, references.get(REFERENCE_IMAGE), runs))
    return checks


def _hash_check(package: Package, name: str) -> Check:
    manifest = package.manifest
    records = manifest.files if name == "package" else manifest.components[name].files
    altered = [r.path for r in records if sha256_of(package.folder / r.path) != r.sha256]
    note = f"altered: {', '.join(altered)}" if altered else ""
    return Check(name, "files", (Measure("altered_files", float(len(altered)), 0.0),), note)


def _component_checks(
    pipeline: Pipeline, name: str, path: Path | None, runs: Arithmetics
) -> list[Check]:
    """Run a graph on its reference inputs and compare every output."""
    if path is None:
        return [failed_check(name, "no reference output")]
    try:
        arrays = _read_arrays(path)
        outputs = pipeline.session(name).run(with_prefix(arrays, "input."))
    except FAILURES as error:
        return [failed_check(name, str(error))]
    expected = with_prefix(arrays, "output.")
    if not expected:
        return [failed_check(name, "the reference output is empty")]
    package, arithmetic = pipeline.package, runs.of_graph(name)
    limits = graph_limits(package.manifest, name, arithmetic)
    checks = compare_outputs(name, expected, outputs, limits)
    return with_float32(checks, package, name, arrays, arithmetic)


def _image_check(pipeline: Pipeline, path: Path | None, runs: Arithmetics) -> Check:
    """Generate the reference image again and compare the pixels."""
    if path is None:
        return failed_image("no reference image")
    try:
        expected, arguments = _image_arguments(path, _read_arrays(path))
        result = pipeline(**arguments)
    except FAILURES as error:
        return failed_image(str(error))
    limits = image_limits(pipeline.package.manifest, runs.of_components())
    return compare_images(expected, np.asarray(result.images[0]), limits)


def _image_arguments(
    path: Path, recorded: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The reference image (H, W, 3) uint8, and the arguments of the call that generates it.

    Raises: PackageError: some are missing, or of another kind.
    """
    try:
        (expected,) = recorded["generated"]
        arguments: dict[str, Any] = {
            "prompt": str(recorded["prompt"]),
            "negative_prompt": str(recorded["negative_prompt"]),
            "height": expected.shape[0],
            "width": expected.shape[1],
            "num_inference_steps": int(recorded["num_inference_steps"]),
            "guidance_scale": float(recorded["guidance_scale"]),
            "scheduler": str(recorded["scheduler"]),
            "latents": recorded.get("latents"),
            "seed": None if "latents" in recorded else int(recorded["seed"]),
            "strength": float(recorded["strength"]) if "strength" in recorded else None,
        }
    except Exception as error:  # whatever a wrong array makes NumPy raise
        raise PackageError(f"reference/{path.name} is damaged: {one_line(error)}") from error
    for argument, name in (("image", "image"), ("mask_image", "mask")):
        if name in recorded:
            arguments[argument] = recorded[name]
    return expected, arguments


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    return read_arrays(
        path,
        error=PackageError,
        limit=REFERENCE_LIMIT,
        folder=path.parents[1],
        called=f"reference/{path.name}",
    )
