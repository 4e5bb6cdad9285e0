"""sdexport build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdexport.commands.shared_options import (
    FILE,
    FOLDER,
    given,
    json_option,
    print_json,
    progress_bar,
)

_FOR_ALL = {"package", "backend", "components", "engine_dir", "rebuild_stale", "as_json"}
_GIVEN = click.core.ParameterSource.COMMANDLINE


class SpanType(click.ParamType[Any]):
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
    "--backend", required=True, type=click.Choice(["onnxruntime", "tensorrt", "tensorrt-rtx"])
)
@click.option("--component", "components", multiple=True, help="Build this one only.")
@click.option("--batch", type=SpanType(), help="Pictures at once; default 1:1:4.")
@click.option("--height", type=SpanType(), help="Pixels; default around the package's own.")
@click.option("--width", type=SpanType(), help="Pixels; default around the package's own.")
@click.option("--tokens", type=SpanType(), help="Of a prompt; default 77:77:231.")
@click.option("--guidance/--no-guidance", default=True, help="Room for the unconditional half.")
@click.option("--static", is_flag=True, help="Add a profile for the OPT sizes alone.")
@click.option("--refittable", is_flag=True, help="Weights can be replaced; needs a GPU.")
@click.option("--weight-stripped", is_flag=True, help="Plans without weights; needs a GPU.")
@click.option("--version-compatible", is_flag=True, help="For later versions of TensorRT too.")
@click.option("--hardware-compatible", is_flag=True, help="tensorrt: for every GPU from Ampere on.")
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    help="tensorrt-rtx: such as 8.9; default portable.",
)
@click.option("--optimization-level", type=click.IntRange(0, 5))
@click.option("--workspace", type=click.IntRange(1), metavar="MB", help="Scratch memory.")
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory.")
@click.option("--timing-cache", type=FILE, help="Keep what the builder measures in this file.")
@click.option("--engine-dir", type=FOLDER, help="Write here instead of PACKAGE/engines.")
@click.option("--rebuild-stale", is_flag=True, help="Replace engines of something else.")
@json_option
def build(
    package: Path,
    backend: str,
    components: tuple[str, ...],
    engine_dir: Path | None,
    timing_cache: Path | None,
    rebuild_stale: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Build engines from PACKAGE: for TensorRT and TensorRT-RTX, or for ONNX Runtime here.

    TensorRT-RTX builds without a GPU. For ONNX Runtime each graph is rewritten, optimised and
    written with its weights laid out for this processor; it opens at once, takes every size and is
    used where it fits. An engine that is there already, for the same graph, library, sizes and
    options, is kept.
    """
    from sdexport.builds.engine_builder import report
    from sdexport.runtime.packages.package import Package

    if backend == "onnxruntime":
        _check_none_given()
    loaded = Package.load(package)
    common: dict[str, Any] = {
        "components": components,
        "engine_dir": engine_dir,
        "rebuild_stale": rebuild_stale,
    }
    with progress_bar(100, "build") as bar:

        def progress(component: str, phase: str, share: float) -> None:
            bar.set_description(f"{component}: {phase}")
            bar.n = round(100 * share)
            bar.refresh()

        if backend == "onnxruntime":
            from sdexport.builds.engine_builder import prepare

            built = prepare(loaded, progress=progress, **common)
        else:
            from sdexport.builds.engine_builder import build as run

            built = run(
                loaded,
                backend=backend,
                timing_cache=timing_cache,
                progress=progress,
                **common,
                **_for_tensorrt(arguments),
            )
    if as_json:
        print_json({"engines": report(built)})
        return
    for one in built:
        how = f"{one.seconds:.1f} s" if one.built else "was there"
        click.echo(
            f"{one.sidecar.component:<14}{one.sidecar.size / 1e6:8.1f} MB  {how:<10} {one.plan}"
        )


def _for_tensorrt(arguments: dict[str, Any]) -> dict[str, Any]:
    from sdexport.builds.engine_builder import EngineSizes
    from sdexport.engines.trt.build_options import BuildOptions

    sizes = {k: arguments.pop(k) for k in ("batch", "height", "width", "tokens")}
    flags = {k: arguments.pop(k) for k in ("guidance", "static")}
    workspace = arguments.pop("workspace")
    arguments["workspace"] = workspace * 10**6 if workspace else None
    return {"sizes": EngineSizes(**given(**sizes), **flags), "options": BuildOptions(**arguments)}


def _check_none_given() -> None:
    """Raises: click.UsageError: an option that is TensorRT's alone."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        if name not in _FOR_ALL and context.get_parameter_source(name) is _GIVEN:
            raise click.UsageError(
                f"{option.opts[0]} is for TensorRT; ONNX Runtime has no use for it"
            )
