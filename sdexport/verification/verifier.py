"""Does a package reproduce PyTorch's reference outputs? Checked without PyTorch.

The reference outputs were recorded when the package was exported (reference/*.npz).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines import PLAN_BACKENDS, PREPARED_BACKEND
from sdexport.engines.array_files import read_arrays
from sdexport.engines.errors import PackageError
from sdexport.engines.files import sha256_of
from sdexport.engines.guarded_files import REFERENCE_LIMIT
from sdexport.engines.messages import one_line, plain
from sdexport.engines.ov import compiled_graph
from sdexport.runtime.component_backends import Backends
from sdexport.runtime.component_engines import engine_path
from sdexport.runtime.packages.manifest import MANIFEST
from sdexport.runtime.packages.package import Package
from sdexport.runtime.packages.signature import TrustedKey
from sdexport.runtime.pipeline import Pipeline
from sdexport.runtime.pipeline_stages import check_tile
from sdexport.verification.comparison import (
    FAILURES,
    compare_images,
    compare_outputs,
    failed_check,
    failed_image,
    statistics,
    with_prefix,
)
from sdexport.verification.environment import environment, shown_backend, within
from sdexport.verification.float32_outputs import with_float32
from sdexport.verification.limits import FLOAT32, Arithmetics, graph_limits, image_limits
from sdexport.verification.open_package import open_package
from sdexport.verification.replay import GraphReplayer, Reference, Replay, reference_size
from sdexport.verification.report import Check, Measure
from sdexport.verification.verification_result import ImagePair, Verification

REFERENCE_IMAGE = "image"
"""Name of the reference image's file in reference/."""

Progress = Callable[[str], object]
"""Called with what is checked next: "hashes", the name of a component, or "image"."""


def verify(
    folder: str | Path,
    backend: Backends = "onnxruntime",
    *,
    trusted_key: TrustedKey | None = None,
    trust: str = "warn",
    progress: Progress = lambda what: None,
    **options: Any,
) -> Verification:
    """Check every file's hash, run every component on its reference inputs, generate the image.

    Args:
      folder: the package.
      trusted_key, trust: whose signature is required, and what graphs may hold; see Package.load.
      backend, options: how components are opened; see sdexport.engines.open_session.
      progress: see Progress.
    Returns: the checks, as a sequence, with `passed`, `failed`, `not_checked` and `html()`.
    Raises: FileNotFoundError: no such folder. PackageError: not a package, files are missing, or it
      holds no reference outputs. MissingDependencyError: the backend is not installed.

    Example:
        >>> import sdexport
        >>> checks = sdexport.verify("package")
        >>> all(check.passed for check in checks)
        True
    """
    package = Package.load(
        folder, verify=trusted_key is not None, trusted_key=trusted_key, trust=trust
    )
    return verify_package(package, backend, progress=progress, **options)


def verify_package(
    package: Package,
    backend: Backends = "onnxruntime",
    *,
    hashes: bool = True,
    only: str | None = None,
    progress: Progress = lambda what: None,
    low_memory: bool = False,
    vae_tile: int | None = None,
    max_batch: int | None = None,
    **options: Any,
) -> Verification:
    """Like `verify`, for a package that is loaded already.

    Args:
      hashes: False skips them, for files that were just written.
      only: a component, to compare its outputs alone, without the image.
      low_memory, vae_tile, max_batch: see Pipeline.
    """
    if vae_tile is not None:
        check_tile(vae_tile, package.manifest.downscale)
    references = check_has_references(package)
    checks = []
    if hashes:
        progress("hashes")
        checks = [_hash_check(package, name) for name in ("package", *package.manifest.components)]
    image = references.get(REFERENCE_IMAGE)
    tiled = vae_tile is not None and vae_tile < max(reference_size(package))
    arithmetics = Arithmetics(package, backend, options)
    with (
        open_package(
            package,
            backend,
            low_memory=low_memory,
            vae_tile=None if tiled else vae_tile,
            max_batch=max_batch,
            **options,
        ) as pipeline,
        GraphReplayer(
            pipeline, backend, options, low_memory=low_memory, vae_tile=vae_tile if tiled else None
        ) as replayer,
    ):
        for name in package.graphs:
            if only is not None and name.partition(".")[0] != only:
                continue
            if name in package.manifest.components:
                progress(name)
            checks += _graph_checks(package, replayer, name, references.get(name), arithmetics)
        if only is not None:
            return Verification(tuple(checks), tuple(replayer.not_checked))
        images = None
        if isinstance(pipeline, Pipeline):
            progress("image")
            replayer.make_room()
            row, images = _image_check(pipeline, image, arithmetics)
            checks.append(row)
        where = environment(pipeline)
    engine_dir = options.get("engine_dir")
    not_checked = [*replayer.not_checked, *_engines_not_run(package, replayer.files, engine_dir)]
    if tiled:
        not_checked.append("the image in tiles: its reference was generated in one piece")
    return Verification(tuple(checks), tuple(not_checked), images, where)


def check_has_references(package: Package) -> dict[str, Path]:
    """The files of reference outputs, by the graph's name or REFERENCE_IMAGE.

    Raises: PackageError: there are none, or nothing says what belongs to the package, so that
      nothing can be verified.
    """
    if not package.manifest.every_file:
        raise PackageError(
            f"nothing was verified: {package.folder} has neither hashes nor reference outputs (it "
            f"has no {MANIFEST}, as a folder that Optimum exported); compare it with its "
            "checkpoint: --against SOURCE"
        )
    references = {p.stem: p for p in sorted((package.folder / "reference").glob("*.npz"))}
    if not references:
        raise PackageError(
            f"nothing was verified: {package.folder} holds no reference outputs (reference/*.npz); "
            "export the checkpoint again"
        )
    return references


def _hash_check(package: Package, name: str) -> Check:
    manifest = package.manifest
    records = manifest.files if name == "package" else manifest.components[name].files
    altered = [r.path for r in records if sha256_of(package.folder / r.path) != r.sha256]
    note = f"altered: {', '.join(altered)}" if altered else ""
    return Check(name, "files", (Measure("altered_files", float(len(altered)), 0.0),), note)


def _graph_checks(
    package: Package,
    replayer: GraphReplayer,
    graph: str,
    path: Path | None,
    arithmetics: Arithmetics,
) -> list[Check]:
    """Run a graph as a pipeline does, and compare every output."""
    if path is None:
        return [failed_check(graph, "no reference output")]
    try:
        arrays = _read_arrays(path)
    except FAILURES as error:
        return [failed_check(graph, str(error))]
    reference = Reference(with_prefix(arrays, "input."), with_prefix(arrays, "output."))
    if not reference.outputs:
        return [failed_check(graph, "the reference output is empty")]
    values = (*reference.inputs.values(), *reference.outputs.values())
    if any(value.dtype.kind not in "fiub" for value in values):
        return [failed_check(graph, f"reference/{path.name} is damaged: it holds no numbers")]
    checks: list[Check] = []
    arithmetic = FLOAT32
    try:
        for replay in replayer.replays(graph, reference):
            arithmetic = arithmetics.of_graph(graph)
            checks += _rows(package, replay, arithmetic)
    except FAILURES as error:  # it cannot be opened
        return [*checks, failed_check(graph, str(error))]
    replayer.make_room()
    return with_float32(checks, package, graph, arrays, arithmetic, replayer.not_checked)


def _rows(package: Package, replay: Replay, arithmetic: str) -> list[Check]:
    """A row for each expected output of a replay.

    Args:
      arithmetic: that it ran in; see limits.py.
    """
    graph = replay.graph
    if replay.error:
        checks = [failed_check(graph, replay.error)]
    else:
        limits = graph_limits(package.manifest, graph, arithmetic)
        checks = compare_outputs(graph, replay.expected, replay.actual, limits)
    source = replay.source
    return [
        replace(
            check,
            way=replay.way,
            inputs=replay.inputs if replay.compared_with else "",
            file=within(package.folder, source.path),
            form=source.form,
            backend=shown_backend(replay.backend),
            compared_with=replay.compared_with,
            remark=source.unused,
            statistics=statistics(
                replay.expected.get(check.output), replay.actual.get(check.output)
            ),
        )
        for check in checks
    ]


def _engines_not_run(
    package: Package, files: Collection[Path], engine_dir: str | Path | None
) -> Iterator[str]:
    """The engines and prepared graphs of a package that were not run, by backend."""
    for backend in (*PLAN_BACKENDS, PREPARED_BACKEND, compiled_graph.BACKEND):
        pattern = engine_path(package, "*", backend, engine_dir)
        present = sorted(pattern.parent.glob(pattern.name))
        found = [
            path
            for path in present
            if path not in files and not path.name.endswith(compiled_graph.ONCE_SUFFIX)
        ]
        if found:
            names = ", ".join(plain(path.name) for path in found)
            yield f"{within(package.folder, pattern.parent)} was not run: {names}"


def _image_check(
    pipeline: Pipeline, path: Path | None, arithmetics: Arithmetics
) -> tuple[Check, ImagePair | None]:
    """Generate the reference image again and compare the pixels."""
    if path is None:
        return failed_image("no reference image"), None
    images = None
    try:
        expected, arguments = _image_arguments(path, _read_arrays(path))
        images = ImagePair(expected, caption=_caption(arguments))
        generated = np.asarray(pipeline(**arguments).images[0])
    except FAILURES as error:
        return failed_image(str(error)), images
    limits = image_limits(pipeline.package.manifest, arithmetics.of_components())
    return compare_images(expected, generated, limits), replace(images, generated=generated)


def _caption(arguments: Mapping[str, Any]) -> str:
    """How the image is generated, in words."""
    names = ("scheduler", "num_inference_steps", "guidance_scale")
    settings = ", ".join(f"{name} {arguments[name]}" for name in names)
    return f"\u201c{arguments['prompt']}\u201d, {settings}"


def _image_arguments(
    path: Path, recorded: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The reference image (H, W, 3) uint8, and the arguments of the call that generates it.

    Raises: PackageError: some are missing, or of another kind.
    """
    try:
        (expected,) = recorded["generated"]
        if expected.dtype != np.uint8 or expected.ndim != 3 or expected.shape[2] != 3:
            raise ValueError(f"generated: {expected.dtype} {expected.shape} is no image")
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
    except MemoryError:
        raise
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
