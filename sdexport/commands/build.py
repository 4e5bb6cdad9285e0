"""sdexport build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdexport.commands.memory_check import check_build, ignore_memory_option
from sdexport.commands.output import echo
from sdexport.commands.progress import Progress, progress
from sdexport.commands.shared_options import (
    FILE,
    FOLDER,
    json_option,
    print_json,
    trust_options,
    verify_hashes_option,
    without_none,
)
from sdexport.commands.verbosity import verbosity_options

_FOR_ONNXRUNTIME = {
    *("package", "backend", "components", "engine_dir", "rebuild_stale", "as_json"),
    *("ignore_memory", "trusted_key", "trust"),
    *("quiet", "verbose", "debug"),
}
"""Parameters that --backend onnxruntime has; the others are for TensorRT only."""
_FOR_OPENVINO = {
    *_FOR_ONNXRUNTIME,
    *("precision", "batch", "height", "width", "tokens", "guidance"),
}
"""Parameters that --backend openvino has."""
_LIBRARIES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_SPANS = ("batch", "height", "width", "tokens", "lora_rank")
_FROM_USER = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)


class SpanType(click.ParamType[Any]):
    """MIN:OPT:MAX, or one number."""

    name = "MIN:OPT:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from sdexport.engines.cache.profiles import Span

        try:
            return Span.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("package", type=FOLDER)
@click.option(
    "--backend",
    required=True,
    type=click.Choice(["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]),
    help="What the engines are for; the other backends need none.",
)
@click.option(
    "--component",
    "components",
    multiple=True,
    help="Build only this component, or a graph of one such as unet.controlnet. Repeatable; "
    "default all components.",
)
@click.option(
    "--precision",
    type=click.Choice(["f32", "bf16", "f16", "i8"]),
    help="openvino: of the arithmetic, as in --backend openvino,precision=bf16; default f32.",
)
@click.option("--batch", type=SpanType(), help="Images at once; default 1:1:4, openvino 1.")
@click.option(
    "--height",
    type=SpanType(),
    help="In pixels; default half to one and a half of the package's, openvino the package's.",
)
@click.option("--width", type=SpanType(), help="In pixels; default as for --height.")
@click.option("--tokens", type=SpanType(), help="Of the prompt; default 77:77:231, openvino 77.")
@click.option(
    "--guidance/--no-guidance",
    default=True,
    help="Leave room in the UNet's batch for the unconditional half; default yes.",
)
@click.option(
    "--lora-rank",
    type=SpanType(),
    help="tensorrt-rtx: of the LoRAs of an image together; default 1:16:128.",
)
@click.option("--static", is_flag=True, help="Add a profile for the OPT sizes only.")
@click.option("--refittable", is_flag=True, help="Allow new weights later; needs a GPU.")
@click.option("--weight-stripped", is_flag=True, help="Store no weights; needs a GPU.")
@click.option("--version-compatible", is_flag=True, help="Also for later TensorRT versions.")
@click.option("--hardware-compatible", is_flag=True, help="tensorrt: for every GPU since Ampere.")
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    help="tensorrt-rtx: such as 8.9. Repeatable; default every GPU that it supports.",
)
@click.option(
    "--optimization-level", type=click.IntRange(0, 5), help="How long the builder searches."
)
@click.option("--workspace", type=click.IntRange(1), metavar="MB", help="Limit of scratch memory.")
@click.option("--weight-streaming", is_flag=True, help="Allow weights to stay in host memory.")
@click.option("--timing-cache", type=FILE, help="tensorrt: keep its measurements here.")
@click.option("--engine-dir", type=FOLDER, help="Write here instead of PACKAGE/engines.")
@click.option("--rebuild-stale", is_flag=True, help="Replace engines that no longer fit.")
@trust_options
@verify_hashes_option
@ignore_memory_option
@json_option
@verbosity_options
def build(
    package: Path,
    backend: str,
    components: tuple[str, ...],
    engine_dir: Path | None,
    timing_cache: Path | None,
    rebuild_stale: bool,
    trusted_key: str | None,
    trust: str,
    verify_hashes: bool,
    ignore_memory: bool,
    as_json: bool,
    **for_tensorrt: Any,
) -> None:
    """Build engines for TensorRT, ONNX Runtime or OpenVINO.

    TensorRT-RTX builds without a GPU. For ONNX Runtime each graph is rewritten, optimised and
    saved with its weights laid out for this processor: it opens at once, takes every size, and is
    used wherever it fits. For OpenVINO each graph is compiled on this processor, for one precision
    and one size of image; other sizes are compiled when they are needed. An engine that was already
    built for the same graph, library, sizes and options is kept.
    """
    from sdexport.builds.engine_builder import report
    from sdexport.runtime.packages.package import Package

    if backend in _LIBRARIES:
        _reject_other_options(backend)
    elif for_tensorrt["precision"] is not None:
        raise click.UsageError(f"--precision is for OpenVINO, not for {backend}")
    arguments: dict[str, Any] = {
        "backend": backend,
        "components": components,
        "engine_dir": engine_dir,
        "rebuild_stale": rebuild_stale,
    }
    precision = for_tensorrt.pop("precision")
    if backend == "openvino":
        arguments |= {"sizes": _sizes(for_tensorrt), **without_none(precision=precision)}
    elif backend != "onnxruntime":
        arguments |= {"timing_cache": timing_cache, **_tensorrt_arguments(for_tensorrt)}
    loaded = Package.load(
        package, verify_hashes=verify_hashes, trusted_key=trusted_key, trust=trust
    )
    check_build(loaded, components, backend, precision=precision, ignore=ignore_memory)
    with progress(100, "build") as shown:
        built = _run(loaded, arguments, shown)
    if as_json:
        print_json({"engines": report(built)})
        return
    for one in built:
        how = f"{one.seconds:.1f} s" if one.built else "kept"
        size = one.sidecar.size / 1e6
        echo(f"{one.sidecar.component:<14}{size:8.1f} MB  {how:<10} {one.plan}")


def _run(package: Any, arguments: dict[str, Any], shown: Progress) -> Any:
    from sdexport.builds.engine_builder import build

    def on_phase(component: str, phase: str, share: float) -> None:
        shown.show(f"{component}: {phase}", share)

    return build(package, progress=on_phase, **arguments)


def _tensorrt_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments `sizes` and `options` of engine_builder.build."""
    from sdexport.engines.trt.build_options import BuildOptions

    sizes = _sizes(options)
    workspace = options.pop("workspace")
    options["workspace"] = workspace * 10**6 if workspace else None
    return {"sizes": sizes, "options": BuildOptions(**options)}


def _sizes(options: dict[str, Any]) -> Any:
    """EngineSizes of the options that say sizes, which are removed."""
    from sdexport.builds.engine_builder import EngineSizes

    spans = {name: options.pop(name) for name in _SPANS}
    flags = {name: options.pop(name) for name in ("guidance", "static")}
    return EngineSizes(**without_none(**spans), **flags)


def _reject_other_options(backend: str) -> None:
    """Raises: click.UsageError: an option was given that this backend does not have."""
    known = _FOR_OPENVINO if backend == "openvino" else _FOR_ONNXRUNTIME
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        if context.get_parameter_source(name) in _FROM_USER and name not in known:
            others = "TensorRT" if name not in _FOR_OPENVINO else "TensorRT and OpenVINO"
            others = "OpenVINO" if name == "precision" else others
            raise click.UsageError(
                f"{option.opts[0]} is for {others}, not for {_LIBRARIES[backend]}"
            )
