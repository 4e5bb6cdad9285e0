"""Compares the memory that a command needs with what there is, before the work."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sdexport.engines.available_memory import available_bytes
from sdexport.engines.errors import OutOfMemoryError, PackageError, SDExportError

SURELY = 1.25
"""A need of so many times the available memory is an error: estimates are within a quarter."""
LARGE = 4
"""An input image with so many times the pixels of the package's own size is mentioned."""
_log = logging.getLogger(__name__)

ignore_memory_option = click.option(
    "--ignore-memory",
    is_flag=True,
    help="Begin even if the memory that is needed seems not to be there.",
)


def check_memory(need: int | None, what: str, remedies: str, *, ignore: bool) -> None:
    """Compare a need with the available memory.

    Args:
      need: bytes; None if it is not known.
      what: needs it, for the message.
      remedies: what needs less, for the message.
      ignore: only warn.
    Raises: OutOfMemoryError: it surely does not fit.
    """
    available = available_bytes()
    if need is None or available is None:
        _log.info("%s: the memory that is needed, or available, is not known", what)
        return
    text = (
        f"{what} needs about {need / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are "
        f"available"
    )
    if need <= available:
        _log.info("%s", text)
    elif ignore or need <= SURELY * available:
        _log.warning("%s: it may fail or be very slow; %s", text, remedies)
    else:
        raise OutOfMemoryError(f"{text}; {remedies}, or begin anyway with --ignore-memory")


def adapters_of(jobs: Iterable[Any]) -> dict[Any, Any]:
    """The packages of the adapters that images use, by their folders.

    Args:
      jobs: of generate_jobs.
    Raises: FileNotFoundError, PackageError: see Package.load.
    """
    from sdexport.runtime.packages.package import Package

    folders = dict.fromkeys(folder for job in jobs for folder in _folders(job))
    return {folder: Package.load(folder, verify=False) for folder in folders}


def check_images(
    pipe: Any,
    jobs: Sequence[Any],
    adapters: Mapping[Any, Any],
    opened_with: Mapping[str, Any],
    *,
    ignore: bool,
) -> None:
    """Check the largest of the images that will be generated.

    Args:
      jobs: of generate_jobs. adapters: of adapters_of. opened_with: arguments of load_pipeline.
    Raises: see check_memory.
    """
    from sdexport.engines.guarded_files import parsing
    from sdexport.runtime.adapters.adapter_memory import lora_need
    from sdexport.runtime.component_backends import DEFAULT
    from sdexport.runtime.inputs import MAX_SIDE
    from sdexport.runtime.memory_need import (
        adapter_calls,
        image_calls,
        memory_need,
        need_with_adapter,
    )

    jobs = list(jobs)
    options = dict(opened_with)
    backends = options.pop("backend", DEFAULT)
    low_memory = bool(options.pop("low_memory", False))
    tiles = {name: options.pop(name, None) for name in ("vae_tile", "max_batch")}
    sizes = {_size(pipe.package, job.arguments) for job in jobs}
    safety = any(job.arguments.get("safety") for job in jobs)
    kinds = list(dict.fromkeys(_kinds(job, adapters) for job in jobs))
    factors = lora_need([_loras(job) for job in jobs])
    for width, height, from_image, guided in sizes:
        if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in (width, height)):
            continue  # the pipeline says what is wrong
        calls = image_calls(
            pipe.package,
            width=width,
            height=height,
            guided=guided,
            from_image=from_image,
            safety=safety,
            kinds=kinds,
            **tiles,
        )
        if all(_is_replaced(job, adapters) for job in jobs):
            denoiser = pipe.package.family.denoiser
            calls = [each for each in calls if each.component.partition(".")[0] != denoiser]
        need = memory_need(pipe.package, calls, backends, options=options, low_memory=low_memory)
        need = None if need is None else need + factors
        for adapter in adapters.values():
            with parsing(PackageError, adapter.folder):
                need = need_with_adapter(
                    need,
                    adapter,
                    adapter_calls(adapter, width=width, height=height, guided=guided),
                    backends,
                    options=options,
                    low_memory=low_memory,
                )
        remedies = "use a smaller --size" + ("" if low_memory else ", or --low-memory")
        what = f"an image of {width}x{height}"
        check_memory(need, what, remedies, ignore=ignore)


def _is_replaced(job: Any, adapters: Mapping[Any, Any]) -> bool:
    """Whether a ControlNet-XS runs in place of the denoiser in all steps of an image.

    Args:
      adapters: packages by their folders.
    """
    from sdexport.runtime.models.controlnet import is_xs

    nets = job.arguments.get("controlnets") or ()
    fused = [each for each in nets if each.package in adapters]
    fused = [each for each in fused if is_xs(adapters[each.package].family)]
    return any((each.start, each.end) == (0, 1) for each in fused)


def _kinds(job: Any, adapters: Mapping[Any, Any]) -> frozenset[Any]:
    """The kinds of adapters that an image uses, for `image_calls`."""
    from sdexport.runtime.adapters.adapter_memory import kinds_of

    packages = [adapters[folder] for folder in _folders(job)]
    return kinds_of(packages, with_loras=bool(_loras(job)))


def _folders(job: Any) -> list[Any]:
    """The folders of the packages of the adapters of an image."""
    from sdexport.runtime.adapters.call_adapters import FIELDS

    used = [each.package for name in FIELDS.values() for each in job.arguments.get(name) or ()]
    return [package for package in used if isinstance(package, str | Path)]


def _loras(job: Any) -> list[Path]:
    """The files and folders of the LoRAs of an image; of anything else the pipeline says more."""
    given = job.arguments.get("loras")
    entries = given if isinstance(given, list | tuple) else ()
    pairs = [each if isinstance(each, list | tuple) else (each, 1.0) for each in entries]
    return [Path(pair[0]) for pair in pairs if len(pair) == 2 and isinstance(pair[0], str | Path)]


def check_verification(
    package: Any, options: Mapping[str, Any], backends: Any, *, low_memory: bool, ignore: bool
) -> None:
    """Check what replaying the reference outputs of a package needs.

    Args:
      options: of the backends' sessions.
    Raises: see check_memory.
    """
    from sdexport.runtime.memory_need import memory_need

    calls = verification_calls(package)
    need = memory_need(package, calls, backends, options=options, low_memory=low_memory)
    remedies = "use a backend that needs less" if low_memory else "use --low-memory"
    check_memory(need, "verifying this package", remedies, ignore=ignore)


def verification_calls(package: Any) -> list[Any]:
    """The calls of a verification: every graph on small inputs, then the reference image.

    A prepared denoiser runs as the package's own graph too, for the sizes that it does not take.
    Graphs that run in a lower precision are computed in float32 as well.
    """
    from sdexport.runtime.component_memory import Call
    from sdexport.runtime.memory_need import image_calls
    from sdexport.verification.replay import reference_size

    height, width = reference_size(package)
    graphs = []
    for graph in package.graphs:
        graphs.append(Call(graph, 2, 8, 8))
        if not package.manifest.is_adapter and graph == package.family.denoiser:
            graphs.append(Call(graph, 2, 8, 8, unprepared=True))
        graphs.append(Call(graph, 2, 8, 8, in_float32=True))
    if package.manifest.is_adapter:
        return graphs
    return graphs + image_calls(package, width=width, height=height)


def check_build(
    package: Any,
    components: Iterable[str],
    backend: str,
    *,
    precision: str | None = None,
    ignore: bool,
) -> None:
    """Check what building an engine for the largest component needs.

    Raises: see check_memory.
    """
    from sdexport.runtime.memory_need import build_need

    need = build_need(package, list(components), backend, precision=precision)
    check_memory(need, "this build", "build on a machine with more memory", ignore=ignore)


def _size(package: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any, bool, bool]:
    """Width and height in pixels, whether there is an input image, and whether guidance is used."""
    image, (height, width) = arguments.get("image"), package.manifest.default_size
    source = image
    if image is None or arguments.get("padding_mask_crop") is not None:
        source = _control_image(arguments)
    if isinstance(source, str | Path) and not {"width", "height"} & arguments.keys():
        width, height = _image_size(Path(source), package.manifest.default_size) or (width, height)
    width, height = arguments.get("width", width), arguments.get("height", height)
    scale = arguments.get("guidance_scale", 2.0)
    guided = not isinstance(scale, int | float) or scale > 1
    return width, height, image is not None, guided


def _control_image(arguments: Mapping[str, Any]) -> Any:
    """The control image whose size is that of the result; see FollowedImages.default_size."""
    for each in (*(arguments.get("controlnets") or ()), *(arguments.get("t2i_adapters") or ())):
        is_list = isinstance(each.image, list | tuple) and each.image
        return each.image[0] if is_list else each.image
    return None


def _image_size(path: Path, own: tuple[int, int]) -> tuple[int, int] | None:
    """(width, height) of an image file, with a warning if it is large; None if it is none."""
    from sdexport.runtime.images.control_images import ControlImages
    from sdexport.runtime.images.loading import opened_file

    try:
        if path.suffix.lower() == ".npy":
            height, width = ControlImages(path).size
        else:
            with opened_file(path) as image:
                width, height = image.size
    except (SDExportError, OSError):  # the pipeline reads it again and says what is wrong
        return None
    if width * height > LARGE * own[0] * own[1]:
        _log.warning(
            "%s has %dx%d pixels, and the model's own size is %dx%d: the result has the image's "
            "size; --size limits it",
            *(path.name, width, height, own[1], own[0]),
        )
    return width, height
