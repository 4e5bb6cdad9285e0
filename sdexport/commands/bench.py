"""sdexport bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdexport.commands.generate import Size
from sdexport.commands.shared_options import FOLDER, advance, json_option, print_json, progress_bar


@click.command()
@click.argument("package", type=FOLDER)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME[,OPTION=VALUE...]",
    help="Several times, such as openvino,precision=bf16; default each that can run here.",
)
@click.option("--size", type=Size(), help="Default the package's own.")
@click.option("--steps", "num_inference_steps", type=click.IntRange(1), default=5)
@click.option("--guidance", "guidance_scale", type=float, default=7.5, show_default=True)
@click.option("--scheduler", help="Default the package's own.")
@click.option("--batch", type=click.IntRange(1, 64), default=1, help="Pictures at once.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True)
@json_option
def bench(package: Path, backends: tuple[str, ...], as_json: bool, **work: Any) -> None:
    """Time PACKAGE's components and whole pictures on each backend, in turn.

    Each backend is first held against PyTorch's recorded answers, in a process of its own.
    """
    from sdexport.bench.benchmark import Contender, table
    from sdexport.bench.benchmark import bench as run

    rivals = [Contender.parse(text) for text in backends]
    with progress_bar(8, "bench") as bar:
        report = run(package, rivals, progress=advance(bar), **work)
    if as_json:
        print_json(report)
    else:
        click.echo(table(report))
    if not any(row.get("opened") for row in report["backends"].values()):
        raise ValueError("no backend could be measured; the table says why")
