"""sdexport bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdexport.commands.output import echo
from sdexport.commands.progress import progress
from sdexport.commands.scheduler_types import SchedulerType
from sdexport.commands.shared_options import (
    FOLDER,
    engine_dir_option,
    json_option,
    print_json,
    session_arguments,
    session_option,
)
from sdexport.commands.value_types import SizeType
from sdexport.commands.verbosity import verbosity_options


@click.command()
@click.argument("package", type=FOLDER)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME[,OPTION=VALUE...]",
    help="Such as openvino,precision=bf16. Repeatable; default every backend that can run here.",
)
@session_option
@engine_dir_option
@click.option("--size", type=SizeType(), help="Of the images; default the package's own size.")
@click.option(
    "--steps",
    "num_inference_steps",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Steps of each image.",
)
@click.option(
    "--guidance",
    "guidance_scale",
    type=float,
    default=7.5,
    show_default=True,
    help="Guidance scale; 1 or less runs the UNet without the unconditional half.",
)
@click.option("--scheduler", type=SchedulerType(), help="Default the package's own scheduler.")
@click.option(
    "--batch", type=click.IntRange(1, 64), default=1, show_default=True, help="Images at once."
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Timed runs of each, after one warm-up.",
)
@json_option
@verbosity_options
def bench(
    package: Path,
    backends: tuple[str, ...],
    session_options: tuple[tuple[str, Any], ...],
    as_json: bool,
    **work: Any,
) -> None:
    """Time a package on each backend.

    The components and whole images are timed. Each backend runs in a separate process, and is
    first checked against the package's reference outputs.
    """
    from sdexport.bench.bench_table import table
    from sdexport.bench.benchmark import bench as run
    from sdexport.engines.errors import EngineError
    from sdexport.runtime.component_backends import BackendSpec

    contenders = [BackendSpec.parse(text) for text in backends]
    if session_options:
        common = session_arguments(session_options)
        if not contenders:
            raise click.UsageError("--option needs --backend")
        contenders = [BackendSpec(each.name, {**common, **each.options}) for each in contenders]
    with progress(None, "bench") as shown:
        report = run(package, contenders, progress=shown.begin, **work)
    if as_json:
        print_json(report)
    else:
        echo(*table(report).split("\n"))
    if not any(row.get("opened") for row in report["backends"].values()):
        raise EngineError("no backend could be measured; the report says why")
