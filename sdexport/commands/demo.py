"""sdexport demo."""

from __future__ import annotations

from pathlib import Path

import click

from sdexport.commands.export import run_export
from sdexport.commands.shared_options import (
    FOLDER,
    advance,
    exit_unless,
    json_option,
    print_json,
    progress_bar,
)


@click.command()
@click.argument("folder", metavar="[DIR]", type=FOLDER, default="sdexport-demo")
@click.option("--force", is_flag=True, help="Replace an existing demo.")
@json_option
def demo(folder: Path, force: bool, as_json: bool) -> None:
    """Export the embedded model, verify it and paint a sheet of pictures into DIR."""
    from sdexport.demo_model.demo_run import STEPS, run

    with progress_bar(6 + STEPS, "demo") as bar:
        report = run(folder, run_export, force=force, progress=advance(bar))
    if as_json:
        print_json(report)
    else:
        click.echo(report["table"])
        for stage, seconds in report["seconds"].items():
            click.echo(f"{stage:<9}{seconds:7.1f} s")
        click.echo(f"package: {report['package']}\nsheet:   {report['sheet']}")
    exit_unless(report["passed"])
